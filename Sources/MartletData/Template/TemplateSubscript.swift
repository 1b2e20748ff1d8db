internal import MartletCore

// `value.name`, `value[key]` and slices, in Jinja2's order: a dot looks for a method first and then for a key, brackets
// the other way round; what is not there is undefined.
extension TemplateInterpreter {
    func attribute(_ name: AttributeName, of value: TemplateValue) throws(MartletError) -> TemplateValue {
        switch value {
        case .dict(let box):
            if let found = try builtIn(name, of: value) { return found }
            if TemplateMethod.forbiddenOfDicts.contains(name.text) { return .undefined(name.text) }
            try charge(box.entries.count >> 3)
            return box[name.text] ?? .undefined(name.text)
        case .undefined(let unknown): throw undefined(unknown)
        default: return try builtIn(name, of: value) ?? .undefined(name.text)
        }
    }

    /// A method or attribute that the type itself has.
    private func builtIn(_ name: AttributeName, of value: TemplateValue) throws(MartletError) -> TemplateValue? {
        switch value {
        case .string, .list, .tuple, .dict:
            guard let method = name.method, method.applies(to: value) else { return nil }
            return .callable(CallableBox(.method(value, method)))
        case .namespace(let box): return box[name.text]
        case .loop(let loop): return loopAttribute(name.text, loop)
        case .callable(let box):
            guard case .cycler(let list) = box.kind else { return nil }
            switch name.text {
            case "next": return .callable(box)
            case "current": return list.items.isEmpty ? .none : list.items[box.position]
            default: return nil
            }
        default: return nil
        }
    }

    private func loopAttribute(_ name: String, _ loop: LoopBox) -> TemplateValue? {
        let i = loop.index
        switch name {
        case "index": return .int(i + 1)
        case "index0": return .int(i)
        case "first": return .bool(i == 0)
        case "last": return .bool(i == loop.count - 1)
        case "length": return .int(loop.count)
        case "revindex": return .int(loop.count - i)
        case "revindex0": return .int(loop.count - i - 1)
        case "depth": return .int(loop.depth0 + 1)
        case "depth0": return .int(loop.depth0)
        case "previtem": return i > 0 && i <= loop.items.count ? loop.items[i - 1] : .undefined("loop.previtem")
        case "nextitem": return i + 1 < loop.items.count ? loop.items[i + 1] : .undefined("loop.nextitem")
        case "cycle": return .callable(CallableBox(.loopCycle(loop)))
        case "changed": return .callable(CallableBox(.loopChanged(loop)))
        default: return nil
        }
    }

    func item(_ key: TemplateValue, of value: TemplateValue) throws(MartletError) -> TemplateValue {
        switch value {
        case .dict(let box):
            if let found = try lookUp(key, in: box) { return found }
        case .list(let box), .tuple(let box):
            if let i = key.index, let at = position(i, box.items.count) { return box.items[at] }
        case .range(let range):
            if let i = key.index, let at = position(i, range.count) { return .int(range[at]) }
        case .string(let text):
            if let i = key.index { return try character(i, of: text) }
        case .undefined(let name): throw undefined(name)
        default: break
        }
        guard case .string(let name) = key else { return .undefined(try repr(key)) }
        return try builtIn(AttributeName(name), of: value) ?? .undefined(name)
    }

    /// The offset a Python index names in a sequence, if it is inside.
    private func position(_ index: Int, _ count: Int) -> Int? {
        let at = index < 0 ? index + count : index
        return at >= 0 && at < count ? at : nil
    }

    private func character(_ index: Int, of text: String) throws(MartletError) -> TemplateValue {
        try charge(bytes: text.utf8.count)
        guard let at = position(index, text.scalarCount) else { return .undefined("index \(index)") }
        let scalars = text.unicodeScalars
        return .string(String(scalars[scalars.index(scalars.startIndex, offsetBy: at)]))
    }

    // MARK: slices

    func slice(
        _ value: TemplateValue, _ start: TemplateValue, _ stop: TemplateValue, _ step: TemplateValue
    ) throws(MartletError) -> TemplateValue {
        if case .undefined(let name) = value { throw undefined(name) }
        let step = try sliceBound(step) ?? 1
        guard step != 0 else { throw failure("the step of a slice is 0") }
        let start = try sliceBound(start), stop = try sliceBound(stop)
        switch value {
        case .list(let box): return try makeList(taken(box.items, start, stop, step))
        case .tuple(let box): return try makeTuple(taken(box.items, start, stop, step))
        case .range(let range): return try makeList(taken(range.items, start, stop, step))
        case .string(let text):
            try charge(bytes: text.utf8.count)
            return try makeString(sliced(text, start, stop, step))
        default: throw failure("'\(value.typeName)' cannot be sliced")
        }
    }

    private func sliceBound(_ value: TemplateValue) throws(MartletError) -> Int? {
        if value.isNone { return nil }
        if let index = value.index { return index }
        throw failure("the bounds of a slice must be integers, not '\(value.typeName)'")
    }

    private func taken(_ items: [TemplateValue], _ start: Int?, _ stop: Int?, _ step: Int) -> [TemplateValue] {
        let indices = sliceIndices(items.count, start, stop, step)
        if step == 1, let first = indices.first { return Array(items[first..<first + indices.count]) }
        return indices.map { items[$0] }
    }

    private func sliced(_ text: String, _ start: Int?, _ stop: Int?, _ step: Int) -> String {
        let count = text.scalarCount
        let indices = sliceIndices(count, start, stop, step)
        if count == text.utf8.count, step == 1 {
            return indices.first.map { text.part($0..<$0 + indices.count) } ?? ""
        }
        let scalars = Array(text.unicodeScalars)
        var out = ""
        for i in indices { out.unicodeScalars.append(scalars[i]) }
        return out
    }

    /// The indices Python's `range(*slice(start, stop, step).indices(count))` gives.
    private func sliceIndices(_ count: Int, _ start: Int?, _ stop: Int?, _ step: Int) -> [Int] {
        func clamp(_ bound: Int, _ low: Int, _ high: Int) -> Int {
            let at = bound < 0 ? (bound < -count ? low : bound + count) : bound
            return min(max(at, low), high)
        }
        if step > 0 {
            let from = start.map { clamp($0, 0, count) } ?? 0
            let to = stop.map { clamp($0, 0, count) } ?? count
            return Array(stride(from: from, to: max(from, to), by: min(step, count + 1)))
        }
        let from = start.map { clamp($0, -1, count - 1) } ?? count - 1
        let to = stop.map { clamp($0, -1, count - 1) } ?? -1
        return Array(stride(from: from, to: min(from, to), by: max(step, -count - 1)))
    }
}
