internal import MartletCore

/// The tests after `is`, by Jinja2's names.
enum TemplateTest: String {
    case odd, even, divisibleby, defined, undefined, filter, test, none, boolean, `false`, `true`, integer, float, lower
    case upper, string, mapping, number, sequence, iterable, callable, sameas, escaped, `in`
    case eq, ne, gt, ge, lt, le

    init?(name: String) {
        switch name {
        case "==", "equalto": self = .eq
        case "!=": self = .ne
        case ">", "greaterthan": self = .gt
        case ">=": self = .ge
        case "<", "lessthan": self = .lt
        case "<=": self = .le
        default: self.init(rawValue: name)
        }
    }

    /// Whether the test compares with an argument.
    var takesArgument: Bool {
        switch self {
        case .divisibleby, .sameas, .in, .eq, .ne, .gt, .ge, .lt, .le: true
        default: false
        }
    }
}

extension TemplateInterpreter {
    func passes(_ call: TestCall, _ value: TemplateValue) throws(MartletError) -> Bool {
        guard let test = call.test else {
            line = call.line
            throw failure("there is no test named '\(call.name)'", fix: "write the template without it")
        }
        return try passes(test, value, try evaluate(call.arguments))
    }

    func passes(_ test: TemplateTest, _ value: TemplateValue, _ arguments: CallValues) throws(MartletError) -> Bool {
        let count = arguments.positional.count + arguments.named.count
        guard count == (test.takesArgument ? 1 : 0),
            let other = test.takesArgument
                ? arguments.positional.first ?? arguments.named.first?.value : TemplateValue.none
        else {
            throw failure("the test '\(test.rawValue)' takes \(test.takesArgument ? 1 : 0) arguments, not \(count)")
        }
        switch test {
        case .defined: return !value.isUndefined
        case .undefined: return value.isUndefined
        case .none: return value.isNone
        case .odd: return try equal(try calculate(.modulo, value, .int(2)), .int(1))
        case .even: return try equal(try calculate(.modulo, value, .int(2)), .int(0))
        case .divisibleby: return try equal(try calculate(.modulo, value, other), .int(0))
        case .eq: return try equal(value, other)
        case .ne: return try !equal(value, other)
        case .gt: return try isLess(other, value)
        case .ge: return try isLess(other, value, orEqual: true)
        case .lt: return try isLess(value, other)
        case .le: return try isLess(value, other, orEqual: true)
        case .in: return try contains(other, value)
        case .sameas: return isSame(value, other)
        case .lower: return isCased(try text(value)) { $0.properties.isUppercase }
        case .upper: return isCased(try text(value)) { $0.properties.isLowercase }
        case .filter: return try string(value, "filter").flatMap { TemplateFilter(name: $0) } != nil
        case .test: return try string(value, "test").flatMap { TemplateTest(name: $0) } != nil
        default: return isKind(test, value)
        }
    }

    private func isKind(_ test: TemplateTest, _ value: TemplateValue) -> Bool {
        switch (test, value) {
        case (.boolean, .bool), (.integer, .int), (.float, .float), (.string, .string), (.mapping, .dict): true
        case (.true, .bool(let truth)): truth
        case (.false, .bool(let truth)): !truth
        case (.number, .int), (.number, .float), (.number, .bool): true
        case (.sequence, .string), (.sequence, .list), (.sequence, .tuple), (.sequence, .dict), (.sequence, .range),
            (.sequence, .undefined):
            true
        case (.iterable, .none), (.iterable, .bool), (.iterable, .int), (.iterable, .float), (.iterable, .namespace),
            (.iterable, .callable):
            false
        case (.iterable, _): true
        case (.callable, .callable), (.callable, .loop), (.callable, .undefined): true
        default: false
        }
    }

    /// Whether the text has cased characters and none for which `isWrong` holds.
    func isCased(_ text: String, _ isWrong: (Unicode.Scalar) -> Bool) -> Bool {
        var isCased = false
        for scalar in text.unicodeScalars {
            let properties = scalar.properties
            if isWrong(scalar) || properties.generalCategory == .titlecaseLetter { return false }
            isCased = isCased || properties.isLowercase || properties.isUppercase
        }
        return isCased
    }

    /// Python's `is`; for strings and numbers, whose identity is an accident there, equality within the type.
    private func isSame(_ a: TemplateValue, _ b: TemplateValue) -> Bool {
        switch (a, b) {
        case (.none, .none): true
        case (.bool(let a), .bool(let b)): a == b
        case (.int(let a), .int(let b)): a == b
        case (.float(let a), .float(let b)): a == b
        case (.string(let a), .string(let b)): sameText(a, b)
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)): a === b
        case (.dict(let a), .dict(let b)): a === b
        case (.namespace(let a), .namespace(let b)): a === b
        default: false
        }
    }
}
