internal import MartletCore

// Taking the arguments of built-in filters, methods and functions.
extension TemplateInterpreter {
    /// The arguments in the order of `parameters`; nil where one was not given.
    func bind(
        _ arguments: CallValues, to name: String, _ parameters: [String], required: Int = 0
    ) throws(MartletError) -> [TemplateValue?] {
        guard arguments.positional.count <= parameters.count else {
            throw failure("'\(name)' takes at most \(parameters.count) arguments, not \(arguments.positional.count)")
        }
        var values: [TemplateValue?] = arguments.positional
        values += Array(repeating: nil, count: parameters.count - values.count)
        for argument in arguments.named {
            guard let i = parameters.firstIndex(of: argument.name) else {
                throw failure("'\(name)' has no argument '\(argument.name)'")
            }
            guard values[i] == nil else { throw failure("'\(name)' got two values for '\(argument.name)'") }
            values[i] = argument.value
        }
        for i in 0..<min(required, parameters.count) where values[i] == nil {
            throw failure("'\(name)' needs the argument '\(parameters[i])'")
        }
        return values
    }

    func integer(_ value: TemplateValue?, _ name: String) throws(MartletError) -> Int? {
        guard let value else { return nil }
        guard let integer = value.index else { throw failure("'\(name)' needs an integer, not '\(value.typeName)'") }
        return integer
    }

    func string(_ value: TemplateValue?, _ name: String) throws(MartletError) -> String? {
        guard let value else { return nil }
        if case .string(let text) = value { return text }
        if case .undefined(let name) = value { throw undefined(name) }
        throw failure("'\(name)' needs a string, not '\(value.typeName)'")
    }

    /// A width in characters that may be allocated.
    func width(_ value: TemplateValue?, _ name: String, default preset: Int) throws(MartletError) -> Int {
        let width = try integer(value, name) ?? preset
        try charge(bytes: max(0, width))
        return max(0, width)
    }

    /// Stable, by Python's order of the keys.
    func sorted(
        _ items: [TemplateValue], by key: (TemplateValue) throws(MartletError) -> TemplateValue, reverse: Bool
    ) throws(MartletError) -> [TemplateValue] {
        var pairs: [(key: TemplateValue, item: TemplateValue)] = []
        for item in items { pairs.append((try key(item), item)) }
        if reverse { pairs.reverse() }
        pairs = try mergeSorted(pairs[...])
        if reverse { pairs.reverse() }
        return pairs.map(\.item)
    }

    private func mergeSorted(
        _ pairs: ArraySlice<(key: TemplateValue, item: TemplateValue)>
    ) throws(MartletError) -> [(key: TemplateValue, item: TemplateValue)] {
        guard pairs.count > 1 else { return Array(pairs) }
        let middle = pairs.startIndex + pairs.count / 2
        let a = try mergeSorted(pairs[..<middle]), b = try mergeSorted(pairs[middle...])
        var merged: [(key: TemplateValue, item: TemplateValue)] = []
        merged.reserveCapacity(a.count + b.count)
        var i = 0, j = 0
        while i < a.count, j < b.count {
            if try isLess(b[j].key, a[i].key) {
                merged.append(b[j])
                j += 1
            } else {
                merged.append(a[i])
                i += 1
            }
        }
        return merged + a[i...] + b[j...]
    }

    /// What an `attribute=` argument such as "function.name" or "0.role" finds in an item.
    /// `preset` stands in for what is not there, at every step.
    func find(
        _ path: TemplateValue, in item: TemplateValue, default preset: TemplateValue? = nil
    ) throws(MartletError) -> TemplateValue {
        guard case .string(let text) = path else {
            let found = path.isNone ? item : try self.item(path, of: item)
            return found.isUndefined ? preset ?? found : found
        }
        var value = item
        for part in text.pieces(around: ".") {
            let isNumber = !part.isEmpty && part.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 }
            value = try self.item(isNumber ? .int(Int(part) ?? .max) : .string(part), of: value)
            if value.isUndefined, let preset { value = preset }
        }
        return value
    }

    /// What strings are compared as where case does not count.
    func foldingCase(_ value: TemplateValue) -> TemplateValue {
        if case .string(let text) = value { .string(text.lowercased()) } else { value }
    }
}
