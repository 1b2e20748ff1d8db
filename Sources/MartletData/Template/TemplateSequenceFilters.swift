internal import MartletCore

// Filters that pick, order or group the items of a sequence.
extension TemplateInterpreter {
    func applySequence(
        _ filter: TemplateFilter, _ value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        let name = filter.rawValue
        switch filter {
        case .first:
            if case .iterator(let box) = value {
                return box.next() ?? .undefined("the first item of an empty sequence")
            }
            return try items(of: value).first ?? .undefined("the first item of an empty sequence")
        case .last: return try reversible(value).last ?? .undefined("the last item of an empty sequence")
        case .reverse:
            if case .string(let text) = value {
                return try makeString(String(String.UnicodeScalarView(text.unicodeScalars.reversed())))
            }
            return try makeIterator(try items(of: value).reversed(), "reversed")
        case .items:
            if value.isUndefined { return try makeIterator([]) }
            guard case .dict(let box) = value else { throw failure("'items' needs a dict, not '\(value.typeName)'") }
            return try makeIterator(DictView(.items, box).items)
        case .sort:
            let given = try bind(arguments, to: name, ["reverse", "case_sensitive", "attribute"])
            let key = try sortKey(given[2] ?? .none, given[1]?.isTrue ?? false)
            return try makeList(try sorted(try items(of: value), by: key, reverse: given[0]?.isTrue ?? false))
        case .dictsort: return try dictSorted(value, arguments)
        case .unique: return try unique(value, arguments)
        case .groupby: return try grouped(value, arguments)
        case .batch: return try batched(value, arguments)
        default: return try columns(value, arguments)
        }
    }

    /// The items of a sequence that can be read from its end.
    private func reversible(_ value: TemplateValue) throws(MartletError) -> [TemplateValue] {
        if case .iterator(let box) = value {
            throw failure("'\(box.typeName)' object is not reversible", fix: "turn it into a list with '| list' first")
        }
        return try items(of: value)
    }

    /// The keys of one or several attributes ("age,name") to sort an item by.
    private func sortKey(
        _ path: TemplateValue, _ isCaseSensitive: Bool
    ) throws(MartletError) -> ((TemplateValue) throws(MartletError) -> TemplateValue) {
        var paths = [path]
        if case .string(let text) = path { paths = text.pieces(around: ",").map { .string($0) } }
        return { item throws(MartletError) in
            var keys: [TemplateValue] = []
            for path in paths {
                let key = try self.find(path, in: item)
                keys.append(isCaseSensitive ? key : self.foldingCase(key))
            }
            return .list(ListBox(keys))
        }
    }

    private func dictSorted(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "dictsort", ["case_sensitive", "by", "reverse"])
        guard case .dict(let box) = value else { throw failure("'dictsort' needs a dict, not '\(value.typeName)'") }
        let by = try string(given[1], "dictsort") ?? "key"
        guard by == "key" || by == "value" else { throw failure("'dictsort' sorts by \"key\" or \"value\"") }
        let key = try sortKey(.int(by == "key" ? 0 : 1), given[0]?.isTrue ?? false)
        return try makeList(try sorted(DictView(.items, box).items, by: key, reverse: given[2]?.isTrue ?? false))
    }

    private func unique(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "unique", ["case_sensitive", "attribute"])
        var keys: [TemplateValue] = []
        var kept: [TemplateValue] = []
        for item in try items(of: value) {
            var key = try find(given[1] ?? .none, in: item)
            if !(given[0]?.isTrue ?? false) { key = foldingCase(key) }
            try requireHashable(key)
            var isNew = true
            for other in keys where try equal(other, key) {
                isNew = false
                break
            }
            if isNew {
                keys.append(key)
                kept.append(item)
            }
        }
        return try makeIterator(kept)
    }

    private func grouped(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "groupby", ["attribute", "default", "case_sensitive"], required: 1)
        let isCaseSensitive = given[2]?.isTrue ?? false
        func key(_ item: TemplateValue) throws(MartletError) -> TemplateValue {
            try find(given[0] ?? .none, in: item, default: given[1].flatMap { $0.isNone ? nil : $0 })
        }
        let ordered = try sorted(
            try items(of: value),
            by: { item throws(MartletError) in isCaseSensitive ? try key(item) : foldingCase(try key(item)) },
            reverse: false)
        var groups: [(key: TemplateValue, items: [TemplateValue])] = []
        for item in ordered {
            let found = try key(item)
            if let last = groups.last,
                try equal(
                    isCaseSensitive ? last.key : foldingCase(last.key), isCaseSensitive ? found : foldingCase(found))
            {
                groups[groups.count - 1].items.append(item)
            } else {
                groups.append((found, [item]))
            }
        }
        var tuples: [TemplateValue] = []
        for group in groups { tuples.append(try makeTuple([group.key, try makeList(group.items)])) }
        return try makeList(tuples)
    }

    private func batched(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "batch", ["linecount", "fill_with"], required: 1)
        let size = try width(given[0], "batch", default: 1)
        guard size > 0 else { throw failure("'batch' needs a positive number of items") }
        let items = try items(of: value)
        var rows: [TemplateValue] = []
        var start = 0
        while start < items.count {
            var row = Array(items[start..<min(items.count, start + size)])
            if let fill = given[1], !fill.isNone, row.count < size {
                try charge(size)
                row += Array(repeating: fill, count: size - row.count)
            }
            rows.append(try makeList(row))
            start += size
        }
        return try makeIterator(rows)
    }

    /// `slice`: the items spread over a number of columns.
    private func columns(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "slice", ["slices", "fill_with"], required: 1)
        let count = try width(given[0], "slice", default: 1)
        guard count > 0 else { throw failure("'slice' needs a positive number of slices") }
        try charge(count)
        let items = try items(of: value)
        let (size, extra) = items.count.quotientAndRemainder(dividingBy: count)
        var columns: [TemplateValue] = []
        var start = 0
        for i in 0..<count {
            let end = start + size + (i < extra ? 1 : 0)
            var column = Array(items[start..<end])
            if let fill = given[1], !fill.isNone, i >= extra { column.append(fill) }
            columns.append(try makeList(column))
            start = end
        }
        return try makeIterator(columns)
    }
}
