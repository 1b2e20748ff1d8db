import MartletCore
import Testing

@testable import MartletCUDA

/// How spans are split into calls of cuDNN: every pair of a query and a key in one call, none in two.
@Suite struct CuDNNPartsTests {
    private struct Pair: Hashable {
        var query, key: Int
    }

    private static func span(_ query: Int, _ queries: Int, _ key: Int, _ keys: Int) -> AttentionSpan {
        AttentionSpan(queryStart: query, queryCount: queries, keyStart: key, keyCount: keys)
    }

    private static let tiles: [[AttentionSpan]] = [
        [span(0, 256, 0, 256)], [span(0, 256, 0, 768)],
        [span(0, 97, 0, 700), span(97, 1, 700, 1), span(98, 42, 701, 42)],
        [span(3, 50, 9, 133), span(53, 1, 160, 65), span(60, 7, 230, 7), span(67, 0, 240, 0), span(70, 80, 240, 159)],
    ]

    private static func shapes(tokens: Int, keyRows: Int) -> ScratchShapes {
        var shapes = ScratchShapes()
        (shapes.tokens, shapes.keyRows) = (tokens, keyRows)
        (shapes.queryHeads, shapes.keyValueHeads, shapes.headSize) = (32, 4, 128)
        return shapes
    }

    private func pairs(_ part: CuDNNPart) -> [Pair] {
        part.spans.flatMap { span in
            (0..<span.queryCount).flatMap { row in
                let last =
                    switch part.mask {
                    case .fromStart: row
                    case .fromEnd: span.keyCount - span.queryCount + row
                    case .none: span.keyCount - 1
                    }
                return (0...last).map { Pair(query: span.queryStart + row, key: span.keyStart + $0) }
            }
        }
    }

    @Test(arguments: tiles, [true, false])
    func everyPairOnce(_ spans: [AttentionSpan], _ isBackward: Bool) throws {
        let shapes = CuDNNPartsTests.shapes(tokens: 300, keyRows: 900)
        var limits = try #require(CuDNNLimits(shapes, isOrdered: true, limit: 1 << 30))
        limits.keyRows = 300
        let empty = CuDNNAttentionGraph(shapes, isBackward: isBackward, isOrdered: true)
        let steps = try #require(limits.steps(spans, empty))
        let found = steps.joined().flatMap(pairs)
        let wanted = spans.filter { $0.queryCount > 0 }.flatMap { pairs(CuDNNPart(spans: [$0], mask: .fromEnd)) }
        #expect(found.count == wanted.count && Set(found) == Set(wanted))
        for part in steps.joined() { #expect(part.spans.allSatisfy { $0.keyCount > 0 }) }
        // Triangles alone skip masked tiles.
        if isBackward { #expect(steps.joined().allSatisfy { $0.mask != .fromEnd }) }
    }

    @Test func queriesWithoutKeysAreRefused() throws {
        let shapes = CuDNNPartsTests.shapes(tokens: 300, keyRows: 900)
        let limits = try #require(CuDNNLimits(shapes, isOrdered: true, limit: 1 << 30))
        let empty = CuDNNAttentionGraph(shapes, isBackward: true, isOrdered: true)
        #expect(limits.steps([CuDNNPartsTests.span(0, 20, 0, 10)], empty) == nil)
    }

    /// A sequence of 262,144 tokens in tiles: each call within the memory that was planned.
    @Test(arguments: [16384, 4096, 128], [true, false])
    func longSequencesFit(_ tile: Int, _ isOrdered: Bool) throws {
        let length = 1 << 18, room = 4400 << 20
        let shapes = CuDNNPartsTests.shapes(tokens: tile, keyRows: length)
        let limits = try #require(CuDNNLimits(shapes, isOrdered: isOrdered, limit: room))
        #expect(limits.roomByteCount <= room && limits.queryRows == tile && limits.keyRows <= 16384)
        let empty = CuDNNAttentionGraph(shapes, isBackward: true, isOrdered: isOrdered)
        let steps = try #require(limits.steps([CuDNNPartsTests.span(0, tile, 0, length)], empty))
        #expect(steps.count == 1 + ceilDiv(length - tile, 16384))
        for part in steps.joined() {
            let graph = try #require(limits.graph(part, empty))
            #expect(graph.roomByteCount <= limits.roomByteCount && graph.runsOfGroup <= limits.runsOfGroup)
        }
    }
}
