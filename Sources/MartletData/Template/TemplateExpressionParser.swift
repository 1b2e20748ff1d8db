internal import MartletCore

/// Expressions, with Jinja2's precedence from loose to tight: `a if b else c`, or, and, not, comparisons, `+ -`, `~`,
/// `* / // %`, `**`, signs, then filters, tests, calls and subscripts.
extension TemplateParser {
    /// An expression, or several separated by commas as a tuple.
    mutating func tupleOrExpression(
        withCondition: Bool = true, end: String? = nil, inParentheses: Bool = false
    ) throws(MartletError) -> Expression {
        var items: [Expression] = []
        var isTuple = false
        while !(current.kind == .variableEnd || current.kind == .blockEnd || isSymbol(")") || end.map(isName) ?? false)
        {
            items.append(
                withCondition ? try expression() : try nested { p throws(MartletError) in try p.disjunction() })
            guard skipSymbol(",") else { break }
            isTuple = true
        }
        if !isTuple, items.count == 1 { return items[0] }
        guard isTuple || inParentheses else { throw failure("expected an expression, found \(found)") }
        return .tuple(items)
    }

    mutating func expression() throws(MartletError) -> Expression {
        try nested { parser throws(MartletError) in
            let outer = parser.nesting
            defer { parser.nesting = outer }
            var result = try parser.disjunction()
            while parser.skipName("if") {
                try parser.limitChain()
                let test = try parser.disjunction()
                let otherwise = parser.skipName("else") ? try parser.expression() : nil
                result = .condition(test: test, then: result, otherwise: otherwise)
            }
            return result
        }
    }

    private mutating func disjunction() throws(MartletError) -> Expression {
        try chain(["or"]) { parser throws(MartletError) in try parser.conjunction() }
    }

    private mutating func conjunction() throws(MartletError) -> Expression {
        try chain(["and"]) { parser throws(MartletError) in try parser.negation() }
    }

    /// Operands with some of `operators` between them, the left ones first: ((a + b) - c) + d.
    private mutating func chain(
        _ operators: Set<String>, of operand: (inout TemplateParser) throws(MartletError) -> Expression
    ) throws(MartletError) -> Expression {
        var left = try operand(&self)
        let outer = nesting
        defer { nesting = outer }
        while current.kind == .symbol || current.kind == .name, operators.contains(current.text) {
            let symbol = current.text
            try limitChain()
            position += 1
            let right = try operand(&self)
            if let operation = Expression.Binary(rawValue: symbol) {
                left = .binary(operation, left, right)
            } else {
                left = symbol == "or" ? .or(left, right) : .and(left, right)
            }
        }
        return left
    }

    private mutating func negation() throws(MartletError) -> Expression {
        guard skipName("not") else { return try comparison() }
        return .unary(.not, try nested { parser throws(MartletError) in try parser.negation() })
    }

    private mutating func comparison() throws(MartletError) -> Expression {
        let first = try sum()
        var rest: [(Expression.Comparison, Expression)] = []
        while true {
            if current.kind == .symbol, let operation = Expression.Comparison(rawValue: current.text) {
                position += 1
                rest.append((operation, try sum()))
            } else if skipName("in") {
                rest.append((.contained, try sum()))
            } else if isName("not"), next.kind == .name, next.text == "in" {
                position += 2
                rest.append((.notContained, try sum()))
            } else {
                return rest.isEmpty ? first : .comparison(first, rest)
            }
        }
    }

    private mutating func sum() throws(MartletError) -> Expression {
        try chain(["+", "-"]) { parser throws(MartletError) in try parser.concatenation() }
    }

    private mutating func concatenation() throws(MartletError) -> Expression {
        var parts = [try product()]
        while skipSymbol("~") { parts.append(try product()) }
        return parts.count == 1 ? parts[0] : .concatenation(parts)
    }

    private mutating func product() throws(MartletError) -> Expression {
        try chain(["*", "/", "//", "%"]) { parser throws(MartletError) in try parser.power() }
    }

    private mutating func power() throws(MartletError) -> Expression {
        try chain(["**"]) { parser throws(MartletError) in try parser.unary(withFilters: true) }
    }

    private mutating func unary(withFilters: Bool) throws(MartletError) -> Expression {
        var node: Expression
        if isSymbol("-") || isSymbol("+") {
            let operation: Expression.Unary = isSymbol("-") ? .minus : .plus
            position += 1
            node = .unary(operation, try nested { parser throws(MartletError) in try parser.unary(withFilters: false) })
        } else {
            node = try primary()
        }
        node = try postfix(node)
        return withFilters ? try filtersAndTests(node) : node
    }

    private mutating func primary() throws(MartletError) -> Expression {
        let token = current
        position += 1
        switch token.kind {
        case .name:
            switch token.text {
            case "true", "True": return .literal(.bool(true))
            case "false", "False": return .literal(.bool(false))
            case "none", "None": return .literal(.none)
            default:
                let name = number(of: token.text)
                mentioned.append(name)
                return .name(name, token.text)
            }
        case .string:
            var text = token.text
            while current.kind == .string {
                text += current.text
                position += 1
            }
            return .literal(.string(text))
        case .integer: return .literal(.int(try integer(token)))
        case .float:
            guard let value = Double(token.text.replacing(text: "_", with: "")) else {
                throw failure("'\(token.text)' is not a number", line: token.line)
            }
            return .literal(.float(value))
        case .symbol where token.text == "(":
            let inner = try tupleOrExpression(inParentheses: true)
            try expectSymbol(")")
            return inner
        case .symbol where token.text == "[": return .list(try items(until: "]"))
        case .symbol where token.text == "{": return try dict()
        default:
            position -= 1
            throw failure("expected an expression, found \(found)")
        }
    }

    private func integer(_ token: TemplateToken) throws(MartletError) -> Int {
        let text = token.text.replacing(text: "_", with: "").lowercased()
        let radix =
            text.hasText(prefix: "0x") ? 16 : text.hasText(prefix: "0o") ? 8 : text.hasText(prefix: "0b") ? 2 : 10
        let digits = radix == 10 ? text : text.part(2..<text.utf8.count)
        guard let value = Int(digits, radix: radix), radix != 10 || value == 0 || !text.hasText(prefix: "0") else {
            throw failure("'\(token.text)' is not an integer of 64 bits", line: token.line)
        }
        return value
    }

    private mutating func items(until end: String) throws(MartletError) -> [Expression] {
        var items: [Expression] = []
        while !isSymbol(end) {
            if !items.isEmpty { try expectSymbol(",") }
            if isSymbol(end) { break }
            items.append(try expression())
        }
        position += 1
        return items
    }

    private mutating func dict() throws(MartletError) -> Expression {
        var entries: [(key: Expression, value: Expression)] = []
        while !isSymbol("}") {
            if !entries.isEmpty { try expectSymbol(",") }
            if isSymbol("}") { break }
            let key = try expression()
            try expectSymbol(":")
            entries.append((key, try expression()))
        }
        position += 1
        return .dict(entries)
    }

    // MARK: after a value

    private mutating func postfix(_ start: Expression) throws(MartletError) -> Expression {
        var node = start
        let outer = nesting
        defer { nesting = outer }
        while true {
            if isSymbol(".") || isSymbol("[") {
                node = try subscripted(node)
            } else if isSymbol("(") {
                let line = current.line
                node = .call(node, try callArguments(), line: line)
            } else {
                return node
            }
            try limitChain()
        }
    }

    private mutating func filtersAndTests(_ start: Expression) throws(MartletError) -> Expression {
        var node = start
        let outer = nesting
        defer { nesting = outer }
        while true {
            if skipSymbol("|") {
                node = .filter(node, try filterCall())
            } else if skipName("is") {
                node = try test(node)
            } else if isSymbol("(") {
                let line = current.line
                node = .call(node, try callArguments(), line: line)
            } else {
                return node
            }
            try limitChain()
        }
    }

    /// Chains are nodes inside nodes: as deep as they are long.
    private mutating func limitChain() throws(MartletError) {
        nesting += 1
        if nesting > TemplateParser.nestingLimit { throw failure("an expression is too long or nested too deeply") }
    }

    private mutating func subscripted(_ node: Expression) throws(MartletError) -> Expression {
        if skipSymbol(".") {
            if current.kind == .integer {
                let token = current
                position += 1
                return .item(node, .literal(.int(try integer(token))))
            }
            return .attribute(node, AttributeName(try expect(.name, "a name or number after '.'")))
        }
        try expectSymbol("[")
        let start = isSymbol(":") ? nil : try tupleUntilBracket()
        guard skipSymbol(":") else {
            try expectSymbol("]")
            guard let start else { throw failure("expected an index") }
            return .item(node, start)
        }
        let stop = isSymbol(":") || isSymbol("]") ? nil : try expression()
        var step: Expression?
        if skipSymbol(":"), !isSymbol("]") { step = try expression() }
        try expectSymbol("]")
        return .slice(node, start: start, stop: stop, step: step)
    }

    private mutating func tupleUntilBracket() throws(MartletError) -> Expression {
        let first = try expression()
        guard isSymbol(",") else { return first }
        var items = [first]
        while skipSymbol(",") { items.append(try expression()) }
        return .tuple(items)
    }

    private mutating func callArguments() throws(MartletError) -> CallArguments {
        var arguments = CallArguments()
        try expectSymbol("(")
        var isFirst = true
        while !isSymbol(")") {
            if !isFirst { try expectSymbol(",") }
            if isSymbol(")") { break }
            isFirst = false
            if skipSymbol("**") {
                guard arguments.namedDict == nil else { throw failure("'**' stands twice in a call") }
                arguments.namedDict = try expression()
            } else if skipSymbol("*") {
                guard arguments.positionalList == nil, arguments.namedDict == nil else {
                    throw failure("'*' cannot stand here in a call")
                }
                arguments.positionalList = try expression()
            } else if current.kind == .name, next.kind == .symbol, next.text == "=" {
                let name = current.text
                position += 2
                arguments.named.append((name, try expression()))
            } else {
                guard arguments.named.isEmpty, arguments.namedDict == nil, arguments.positionalList == nil else {
                    throw failure("a positional argument follows a named one")
                }
                arguments.positional.append(try expression())
            }
        }
        position += 1
        return arguments
    }

    /// The filters of `{% filter a | b %}` and `{% set x | a | b %}`.
    mutating func filterChain() throws(MartletError) -> [FilterCall] {
        _ = skipSymbol("|")
        var filters = [try filterCall()]
        while skipSymbol("|") { filters.append(try filterCall()) }
        return filters
    }

    private mutating func filterCall() throws(MartletError) -> FilterCall {
        let line = current.line
        let name = try dottedName("the name of a filter")
        let arguments = isSymbol("(") ? try callArguments() : CallArguments()
        return FilterCall(name: name, filter: TemplateFilter(name: name), arguments: arguments, line: line)
    }

    private mutating func dottedName(_ what: String) throws(MartletError) -> String {
        var name = try expect(.name, what)
        while skipSymbol(".") { name += "." + (try expect(.name, what)) }
        return name
    }

    private mutating func test(_ node: Expression) throws(MartletError) -> Expression {
        let line = current.line
        let isNegated = skipName("not")
        let name = try dottedName("the name of a test")
        var arguments = CallArguments()
        if isSymbol("(") {
            arguments = try callArguments()
        } else if startsTestArgument {
            if isName("is") { throw failure("tests with 'is' cannot be chained") }
            let argument = try nested { parser throws(MartletError) in try parser.postfix(try parser.primary()) }
            arguments.positional = [argument]
        }
        let test = Expression.test(
            node, TestCall(name: name, test: TemplateTest(name: name), arguments: arguments, line: line))
        return isNegated ? .unary(.not, test) : test
    }

    private var startsTestArgument: Bool {
        switch current.kind {
        case .name: !["else", "or", "and", "if", "in", "not", "recursive"].contains(current.text)
        case .string, .integer, .float: true
        case .symbol: current.text == "[" || current.text == "{"
        default: false
        }
    }
}
