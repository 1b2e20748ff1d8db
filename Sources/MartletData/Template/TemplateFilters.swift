internal import MartletCore

/// The filters, by Jinja2's names. `tojson` is the one of transformers.
enum TemplateFilter: String {
    case abs, attr, batch, capitalize, center, `default`, dictsort, escape, first, float, format, groupby, indent, int
    case items, join, last, length, list, lower, map, max, min, reject, rejectattr, replace, reverse, round, safe
    case select, selectattr, slice, sort, string, sum, title, tojson, trim, truncate, unique, upper, urlencode,
        wordcount

    init?(name: String) {
        switch name {
        case "d": self = .default
        case "count": self = .length
        case "e", "forceescape": self = .escape
        default: self.init(rawValue: name)
        }
    }
}

extension TemplateInterpreter {
    func apply(_ call: FilterCall, to value: TemplateValue) throws(MartletError) -> TemplateValue {
        let arguments = try evaluate(call.arguments)
        line = call.line
        guard let filter = call.filter else {
            throw failure("there is no filter named '\(call.name)'", fix: "write the template without it")
        }
        return try apply(filter, to: value, arguments)
    }

    func apply(
        _ filter: TemplateFilter, to value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        switch filter {
        case .default: return try defaulted(value, arguments)
        case .tojson: return try makeString(try toJSON(value, arguments))
        case .length: return .int(try length(of: value))
        case .string, .safe: return .string(try text(value))
        case .list: return try makeList(try items(of: value))
        case .abs, .int, .float, .round, .sum, .min, .max: return try applyNumeric(filter, value, arguments)
        case .batch, .slice, .first, .last, .reverse, .sort, .unique, .dictsort, .groupby, .items:
            return try applySequence(filter, value, arguments)
        case .map, .select, .reject, .selectattr, .rejectattr: return try applySelection(filter, value, arguments)
        case .attr: return try plainAttribute(value, arguments)
        default: return try applyText(filter, value, arguments)
        }
    }

    private func defaulted(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let given = try bind(arguments, to: "default", ["default_value", "boolean"])
        let replaces = value.isUndefined || (given[1]?.isTrue ?? false) && !value.isTrue
        return replaces ? given[0] ?? .string("") : value
    }

    /// `x | attr("name")`: like a dot, but never a key.
    private func plainAttribute(_ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        let name = try string(try bind(arguments, to: "attr", ["name"], required: 1)[0], "attr") ?? ""
        if case .dict = value { return try attribute(AttributeName(name), of: .dict(DictBox([]))) }
        return try attribute(AttributeName(name), of: value)
    }

    // MARK: map, select and reject

    private func applySelection(
        _ filter: TemplateFilter, _ value: TemplateValue, _ arguments: CallValues
    ) throws(MartletError) -> TemplateValue {
        guard value.isTrue else { return try makeIterator([]) }
        if filter == .map { return try makeIterator(try mapped(try items(of: value), arguments)) }
        let keeps = filter == .select || filter == .selectattr
        var arguments = arguments
        var path: TemplateValue?
        if filter == .selectattr || filter == .rejectattr {
            guard !arguments.positional.isEmpty else {
                throw failure("'\(filter.rawValue)' needs the name of an attribute")
            }
            path = arguments.positional.removeFirst()
        }
        let test = arguments.positional.isEmpty ? nil : try self.test(named: arguments.positional.removeFirst())
        var kept: [TemplateValue] = []
        for item in try items(of: value) {
            let subject = try path.map { p throws(MartletError) in try find(p, in: item) } ?? item
            let passes =
                try test.map { t throws(MartletError) in try self.passes(t, subject, arguments) } ?? subject.isTrue
            if passes == keeps { kept.append(item) }
        }
        return try makeIterator(kept)
    }

    private func test(named value: TemplateValue) throws(MartletError) -> TemplateTest {
        guard case .string(let name) = value, let test = TemplateTest(name: name) else {
            throw failure("there is no test named \(try repr(value))")
        }
        return test
    }

    private func mapped(_ items: [TemplateValue], _ arguments: CallValues) throws(MartletError) -> [TemplateValue] {
        var results: [TemplateValue] = []
        if arguments.positional.isEmpty {
            let given = try bind(arguments, to: "map", ["attribute", "default"], required: 1)
            let preset = given[1].flatMap { $0.isNone ? nil : $0 }
            for item in items { results.append(try find(given[0] ?? .none, in: item, default: preset)) }
            return results
        }
        var rest = arguments
        guard case .string(let name) = rest.positional.removeFirst(), let filter = TemplateFilter(name: name) else {
            throw failure("'map' needs the name of a filter, not \(try repr(arguments.positional[0]))")
        }
        for item in items { results.append(try apply(filter, to: item, rest)) }
        return results
    }
}
