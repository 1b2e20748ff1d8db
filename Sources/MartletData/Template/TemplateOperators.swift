internal import MartletCore

#if canImport(Glibc)
internal import Glibc
#elseif canImport(Darwin)
internal import Darwin
#endif

// Python's operators.

/// Two numbers under an operator: both integers, or both taken as floats.
private enum NumberPair {
    case integers(Int, Int)
    case floats(Double, Double)

    init?(_ a: TemplateValue, _ b: TemplateValue) {
        if let a = a.index, let b = b.index {
            self = .integers(a, b)
        } else if let a = a.asDouble, let b = b.asDouble {
            self = .floats(a, b)
        } else {
            return nil
        }
    }
}

extension TemplateValue {
    /// The value of a number or boolean.
    var asDouble: Double? {
        switch self {
        case .float(let value): value
        case .int(let value): Double(value)
        case .bool(let value): value ? 1 : 0
        default: nil
        }
    }
}

extension TemplateInterpreter {
    // MARK: arithmetic

    func calculate(
        _ operation: Expression.Binary, _ a: TemplateValue, _ b: TemplateValue
    ) throws(MartletError) -> TemplateValue {
        if let pair = NumberPair(a, b) {
            switch pair {
            case .integers(let a, let b): return try calculate(operation, a, b)
            case .floats(let a, let b): return .float(try calculate(operation, a, b))
            }
        }
        switch (operation, a, b) {
        case (.add, .string(let a), .string(let b)): return try makeString(a + b)
        case (.add, .list(let a), .list(let b)): return try makeList(a.items + b.items)
        case (.add, .tuple(let a), .tuple(let b)): return try makeTuple(a.items + b.items)
        case (.multiply, _, _):
            if let count = b.index, let repeated = try repeated(a, count) { return repeated }
            if let count = a.index, let repeated = try repeated(b, count) { return repeated }
            if case .undefined(let name) = a { throw undefined(name) }
            if case .undefined(let name) = b { throw undefined(name) }
            throw mismatch(operation.rawValue, a, b)
        case (.modulo, .string(let format), _): return try makeString(try percentFormat(format, b))
        case (_, .undefined(let name), _), (_, _, .undefined(let name)): throw undefined(name)
        default: throw mismatch(operation.rawValue, a, b)
        }
    }

    private func mismatch(_ operation: String, _ a: TemplateValue, _ b: TemplateValue) -> MartletError {
        failure(
            "'\(operation)' does not work between '\(a.typeName)' and '\(b.typeName)'",
            fix: "convert one of them in the template (for instance with '| string'); '~' joins values of any type")
    }

    /// `sequence * count`, if the value is a sequence.
    private func repeated(_ sequence: TemplateValue, _ count: Int) throws(MartletError) -> TemplateValue? {
        let count = max(0, count)
        switch sequence {
        case .string(let text):
            let (size, overflow) = text.utf8.count.multipliedReportingOverflow(by: count)
            try charge(bytes: overflow ? .max : size)
            return .string(String(repeating: text, count: text.isEmpty ? 0 : count))
        case .list(let box): return try makeList(try repeated(box.items, count))
        case .tuple(let box): return try makeTuple(try repeated(box.items, count))
        default: return nil
        }
    }

    private func repeated(_ items: [TemplateValue], _ count: Int) throws(MartletError) -> [TemplateValue] {
        let (size, overflow) = items.count.multipliedReportingOverflow(by: count)
        try charge(overflow ? .max / 2 : size)
        return items.isEmpty ? [] : Array(repeatElement(items, count: count).joined())
    }

    private func calculate(_ operation: Expression.Binary, _ a: Int, _ b: Int) throws(MartletError) -> TemplateValue {
        let result: (partialValue: Int, overflow: Bool)
        switch operation {
        case .add: result = a.addingReportingOverflow(b)
        case .subtract: result = a.subtractingReportingOverflow(b)
        case .multiply: result = a.multipliedReportingOverflow(by: b)
        case .divide:
            guard b != 0 else { throw failure("division by zero") }
            return .float(Double(a) / Double(b))
        case .floorDivide, .modulo:
            guard b != 0 else { throw failure("division by zero") }
            if b == -1, operation == .modulo { return .int(0) }
            result = operation == .modulo ? (pythonModulo(a, b), false) : floorQuotient(a, b)
        case .power:
            guard b >= 0 else {
                guard a != 0 else { throw failure("0 cannot be raised to a negative power") }
                return .float(pow(Double(a), Double(b)))
            }
            result = integerPower(a, b)
        }
        guard !result.overflow else { throw failure("'\(operation.rawValue)' gives an integer beyond 64 bits") }
        return .int(result.partialValue)
    }

    private func floorQuotient(_ a: Int, _ b: Int) -> (partialValue: Int, overflow: Bool) {
        let result = a.dividedReportingOverflow(by: b)
        let isInexact = !result.overflow && a % b != 0 && (a < 0) != (b < 0)
        return (isInexact ? result.partialValue - 1 : result.partialValue, result.overflow)
    }

    private func pythonModulo(_ a: Int, _ b: Int) -> Int {
        let rest = a % b
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest
    }

    private func integerPower(_ base: Int, _ exponent: Int) -> (partialValue: Int, overflow: Bool) {
        if base == 0 || base == 1 { return (exponent == 0 ? 1 : base, false) }
        if base == -1 { return (exponent % 2 == 0 ? 1 : -1, false) }
        guard exponent < 64 else { return (0, true) }
        var result = 1
        for _ in 0..<exponent {
            let step = result.multipliedReportingOverflow(by: base)
            if step.overflow { return step }
            result = step.partialValue
        }
        return (result, false)
    }

    private func calculate(_ operation: Expression.Binary, _ a: Double, _ b: Double) throws(MartletError) -> Double {
        switch operation {
        case .add: return a + b
        case .subtract: return a - b
        case .multiply: return a * b
        case .divide, .floorDivide, .modulo:
            guard b != 0 else { throw failure("division by zero") }
            if operation == .divide { return a / b }
            let (quotient, rest) = floorDivision(a, b)
            return operation == .modulo ? rest : quotient
        case .power:
            let result = pow(a, b)
            guard !(a == 0 && b < 0) else { throw failure("0 cannot be raised to a negative power") }
            guard result.isFinite || !a.isFinite || !b.isFinite, !result.isNaN || a.isNaN || b.isNaN else {
                throw failure("'**' gives no number that can be shown")
            }
            return result
        }
    }

    /// Python's `divmod` of floats: the rest has the divisor's sign.
    private func floorDivision(_ a: Double, _ b: Double) -> (quotient: Double, rest: Double) {
        var rest = fmod(a, b)
        var quotient = (a - rest) / b
        if rest != 0 {
            if (b < 0) != (rest < 0) {
                rest += b
                quotient -= 1
            }
        } else {
            rest = b.sign == .minus ? -0.0 : 0.0
        }
        guard quotient != 0 else { return ((a / b).sign == .minus ? -0.0 : 0.0, rest) }
        let floor = quotient.rounded(.down)
        return (quotient - floor > 0.5 ? floor + 1 : floor, rest)
    }

    func negate(_ operation: Expression.Unary, _ value: TemplateValue) throws(MartletError) -> TemplateValue {
        if let number = value.index {
            guard operation == .minus else { return .int(number) }
            let result = 0.subtractingReportingOverflow(number)
            guard !result.overflow else { throw failure("'-' gives an integer beyond 64 bits") }
            return .int(result.partialValue)
        }
        if case .float(let number) = value { return .float(operation == .minus ? -number : number) }
        if case .undefined(let name) = value { throw undefined(name) }
        throw failure("a sign cannot stand before '\(value.typeName)'")
    }

    // MARK: comparison

    func compare(
        _ operation: Expression.Comparison, _ a: TemplateValue, _ b: TemplateValue
    ) throws(MartletError) -> Bool {
        switch operation {
        case .equal: return try equal(a, b)
        case .notEqual: return try !equal(a, b)
        case .contained: return try contains(b, a)
        case .notContained: return try !contains(b, a)
        case .less: return try isLess(a, b)
        case .greater: return try isLess(b, a)
        case .lessOrEqual: return try isLess(a, b, orEqual: true)
        case .greaterOrEqual: return try isLess(b, a, orEqual: true)
        }
    }

    /// Python's `==`.
    func equal(_ a: TemplateValue, _ b: TemplateValue) throws(MartletError) -> Bool {
        try charge(1)
        switch (a, b) {
        case (.string(let a), .string(let b)): return sameText(a, b)
        case (.none, .none), (.undefined, .undefined): return true
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            return a === b ? true : try equal(a.items, b.items)
        case (.dict(let a), .dict(let b)): return a === b ? true : try equal(a, b)
        case (.range(let a), .range(let b)): return try equal(a.items, b.items)
        case (.view(let a), .view(let b)):
            guard a.kind == b.kind, a.kind != .values else { return a === b }
            return try equal(a.dict, b.dict)
        case (.namespace(let a), .namespace(let b)): return a === b
        case (.iterator(let a), .iterator(let b)): return a === b
        case (.loop(let a), .loop(let b)): return a === b
        case (.callable(let a), .callable(let b)): return a === b
        default:
            guard let pair = NumberPair(a, b) else { return false }
            switch pair {
            case .integers(let a, let b): return a == b
            case .floats(let a, let b): return a == b
            }
        }
    }

    func equal(_ a: [TemplateValue], _ b: [TemplateValue]) throws(MartletError) -> Bool {
        guard a.count == b.count else { return false }
        for (a, b) in zip(a, b) where try !equal(a, b) { return false }
        return true
    }

    private func equal(_ a: DictBox, _ b: DictBox) throws(MartletError) -> Bool {
        guard a.entries.count == b.entries.count else { return false }
        for entry in a.entries {
            guard let other = try lookUp(entry.key, in: b), try equal(entry.value, other) else { return false }
        }
        return true
    }

    /// The value of a key.
    func lookUp(_ key: TemplateValue, in dict: DictBox) throws(MartletError) -> TemplateValue? {
        try charge(dict.entries.count >> 3)
        if case .string(let name) = key { return dict[name] }
        for entry in dict.entries where try equal(entry.key, key) { return entry.value }
        return nil
    }

    /// Python's `<`, or `<=`.
    func isLess(_ a: TemplateValue, _ b: TemplateValue, orEqual: Bool = false) throws(MartletError) -> Bool {
        try charge(1)
        if let pair = NumberPair(a, b) {
            switch pair {
            case .integers(let a, let b): return orEqual ? a <= b : a < b
            case .floats(let a, let b): return orEqual ? a <= b : a < b
            }
        }
        switch (a, b) {
        case (.string(let a), .string(let b)): return orEqual ? !textPrecedes(b, a) : textPrecedes(a, b)
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            for (a, b) in zip(a.items, b.items) where try !equal(a, b) { return try isLess(a, b, orEqual: orEqual) }
            return orEqual ? a.items.count <= b.items.count : a.items.count < b.items.count
        case (.undefined(let name), _), (_, .undefined(let name)): throw undefined(name)
        default: throw failure("'\(a.typeName)' and '\(b.typeName)' have no order")
        }
    }

    /// Python's `item in container`.
    func contains(_ container: TemplateValue, _ item: TemplateValue) throws(MartletError) -> Bool {
        switch container {
        case .string(let text):
            guard case .string(let part) = item else {
                throw failure("'in' on a string needs a string, not '\(item.typeName)'")
            }
            try charge(bytes: text.utf8.count)
            return part.isEmpty || text.firstOffset(of: part) != nil
        case .dict(let box):
            try requireHashable(item)
            return try lookUp(item, in: box) != nil
        case .iterator(let box):
            while let next = box.next() {
                if try equal(next, item) { return true }
            }
            return false
        case .none, .bool, .int, .float, .callable, .namespace:
            throw failure("'in' cannot look into '\(container.typeName)'")
        default:
            for other in try items(of: container) where try equal(other, item) { return true }
            return false
        }
    }

    /// The items a loop over the value walks through.
    func items(of value: TemplateValue) throws(MartletError) -> [TemplateValue] {
        switch value {
        case .list(let box), .tuple(let box): return box.items
        case .dict(let box): return box.entries.map(\.key)
        case .view(let view):
            try charge(view.dict.entries.count)
            return view.items
        case .range(let range):
            try charge(range.count)
            return range.items
        case .iterator(let box): return box.takeAll()
        case .string(let text):
            try charge(text.utf8.count)
            return text.unicodeScalars.map { .string(String($0)) }
        case .undefined: return []
        default: throw failure("'\(value.typeName)' cannot be looped over")
        }
    }

    /// Python's `len`.
    func length(of value: TemplateValue) throws(MartletError) -> Int {
        switch value {
        case .string(let text):
            try charge(bytes: text.utf8.count)
            return text.scalarCount
        case .list(let box), .tuple(let box): return box.items.count
        case .dict(let box): return box.entries.count
        case .view(let view): return view.dict.entries.count
        case .range(let range): return range.count
        case .loop(let loop): return loop.count
        case .undefined: return 0
        default: throw failure("'\(value.typeName)' has no length", fix: "turn it into a list with '| list' first")
        }
    }
}
