/// The extents of one call: `r` routed rows of `t` tokens, `h` hidden, `f` inner, `e` experts, `k` a token, `a` rank.
package struct ExpertsSize {
    package var t: Int
    package var h: Int
    package var f: Int
    package var e: Int
    package var k: Int
    package var a: Int
    package var r: Int { t * k }

    package init(_ shapes: ScratchShapes) {
        (t, h, f) = (shapes.tokens, shapes.hidden, shapes.expertInner)
        (e, k, a) = (shapes.experts, shapes.expertsPerToken, shapes.rank)
    }

    package init(_ x: Tensor, _ routing: Routing, _ experts: Experts) {
        e = experts.down_EHF.shape[0]
        h = experts.down_EHF.shape[1]
        f = experts.down_EHF.shape[2]
        t = x.count / max(1, h)
        k = routing.expert_TK.count / max(1, t)
        a = max(experts.gateUpAdapter?.a.shape[1] ?? 0, experts.downAdapter?.a.shape[1] ?? 0)
        precondition(x.count == t * h && experts.gateUp_EFH.count == e * 2 * f * h && routing.offset_E1.count == e + 1)
    }
}
