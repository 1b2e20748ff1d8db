internal import MartletCore

/// Parses the tokens of a template into statements. Expressions are in TemplateExpressionParser.swift.
struct TemplateParser {
    let tokens: [TemplateToken]
    var position = 0
    var program: TemplateProgram
    /// Open blocks and expressions; limited so that no template can exhaust the stack.
    var nesting = 0
    static let nestingLimit = 100
    private var loopDepth = 0
    /// Every name read so far, so that a macro knows what its body mentions.
    var mentioned: [Int] = []

    static func parse(_ source: String, name: String) throws(MartletError) -> TemplateProgram {
        var lexer = TemplateLexer(source: source, name: name)
        var parser = TemplateParser(tokens: try lexer.tokenize(), name: name)
        parser.program.body = try parser.statements(until: [])
        return parser.program
    }

    private init(tokens: [TemplateToken], name: String) {
        self.tokens = tokens
        program = TemplateProgram(name: name)
    }

    // MARK: tokens

    /// The token at the position; the last one is `.end` and is never passed.
    var current: TemplateToken { tokens[min(position, tokens.count - 1)] }
    var next: TemplateToken { tokens[min(position + 1, tokens.count - 1)] }

    func failure(_ reason: String, line: Int? = nil) -> MartletError {
        templateSyntaxError(reason, name: program.name, line: line ?? current.line)
    }

    func isSymbol(_ text: String) -> Bool { current.kind == .symbol && current.text == text }
    func isName(_ text: String) -> Bool { current.kind == .name && current.text == text }

    mutating func skipSymbol(_ text: String) -> Bool {
        guard isSymbol(text) else { return false }
        position += 1
        return true
    }

    mutating func skipName(_ text: String) -> Bool {
        guard isName(text) else { return false }
        position += 1
        return true
    }

    mutating func expectSymbol(_ text: String) throws(MartletError) {
        guard skipSymbol(text) else { throw failure("expected '\(text)', found \(found)") }
    }

    mutating func expect(_ kind: TemplateToken.Kind, _ description: String) throws(MartletError) -> String {
        guard current.kind == kind else { throw failure("expected \(description), found \(found)") }
        defer { position += 1 }
        return current.text
    }

    /// The current token as an error message names it.
    var found: String {
        switch current.kind {
        case .blockEnd: "the end of the block '%}'"
        case .variableEnd: "the end of the expression '}}'"
        case .end: "the end of the template"
        case .data: "text"
        default: "'\(current.text)'"
        }
    }

    mutating func number(of name: String) -> Int {
        if let number = program.names[name] { return number }
        let number = program.names.count
        program.names[name] = number
        return number
    }

    mutating func nested<R>(_ body: (inout TemplateParser) throws(MartletError) -> R) throws(MartletError) -> R {
        nesting += 1
        defer { nesting -= 1 }
        guard nesting <= TemplateParser.nestingLimit else {
            throw failure("blocks or expressions are nested more than \(TemplateParser.nestingLimit) deep")
        }
        return try body(&self)
    }

    // MARK: statements

    /// Statements up to one of the block names in `ends` (which stays the current token), or to the template's end.
    private mutating func statements(until ends: [String]) throws(MartletError) -> [Statement] {
        var body: [Statement] = []
        while true {
            let token = current
            position += 1
            switch token.kind {
            case .data: body.append(.text(token.text))
            case .variableBegin:
                body.append(.output(try tupleOrExpression(), line: token.line))
                _ = try expect(.variableEnd, "'}}'")
            case .blockBegin:
                if current.kind == .name, ends.contains(current.text) { return body }
                if let statement = try nested({ parser throws(MartletError) in try parser.statement() }) {
                    body.append(statement)
                }
                _ = try expect(.blockEnd, "'%}'")
            default:
                position -= 1
                guard ends.isEmpty else {
                    throw failure("the template ends before '{% \(ends.last ?? "") %}'")
                }
                return body
            }
        }
    }

    /// The body of a block, after the rest of its opening tag; the closing name is consumed.
    private mutating func block(until end: String) throws(MartletError) -> [Statement] {
        let body = try bodyPart(until: [end])
        position += 1
        return body
    }

    private mutating func bodyPart(until ends: [String]) throws(MartletError) -> [Statement] {
        _ = skipSymbol(":")
        _ = try expect(.blockEnd, "'%}'")
        return try statements(until: ends)
    }

    private mutating func statement() throws(MartletError) -> Statement? {
        let line = current.line
        let tag = try expect(.name, "the name of a block")
        switch tag {
        case "if": return try ifBlock(line)
        case "for": return try forBlock(line)
        case "set": return try setStatement(line)
        case "macro": return try macroBlock(line)
        case "call": return try callBlock(line)
        case "filter":
            let filters = try filterChain()
            return .filterBlock(filters, body: try block(until: "endfilter"), line: line)
        case "with": return try withBlock(line)
        case "generation":
            program.hasGenerationBlocks = true
            return .generation(try block(until: "endgeneration"), line: line)
        case "print": return .output(try tupleOrExpression(), line: line)
        case "break", "continue":
            guard loopDepth > 0 else { throw failure("'\(tag)' stands outside a loop", line: line) }
            return tag == "break" ? .breakLoop : .continueLoop
        case "extends", "include", "import", "from", "block", "do", "autoescape", "trans":
            throw failure("'{% \(tag) %}' is not available in chat templates", line: line)
        default: throw failure("'{% \(tag) %}' is not a block that can stand here", line: line)
        }
    }

    private mutating func ifBlock(_ line: Int) throws(MartletError) -> Statement {
        var branches: [(test: Expression, body: [Statement])] = []
        while true {
            let test = try tupleOrExpression(withCondition: false)
            branches.append((test, try bodyPart(until: ["elif", "else", "endif"])))
            let tag = current.text
            position += 1
            if tag == "elif" { continue }
            let otherwise = tag == "else" ? try block(until: "endif") : []
            return .ifElse(branches, otherwise: otherwise, line: line)
        }
    }

    private mutating func forBlock(_ line: Int) throws(MartletError) -> Statement {
        let target = try assignmentTarget(allowsNamespace: false)
        guard skipName("in") else { throw failure("expected 'in' after the variables of a loop, found \(found)") }
        let source = try tupleOrExpression(withCondition: false, end: "recursive")
        let filter = skipName("if") ? try expression() : nil
        let isRecursive = skipName("recursive")
        loopDepth += 1
        let body = try bodyPart(until: ["endfor", "else"])
        loopDepth -= 1
        let hasElse = current.text == "else"
        position += 1
        let otherwise = hasElse ? try block(until: "endfor") : []
        return .forLoop(
            ForBlock(
                target: target, source: source, filter: filter, isRecursive: isRecursive, body: body,
                otherwise: otherwise, line: line, loopName: number(of: "loop")))
    }

    private mutating func setStatement(_ line: Int) throws(MartletError) -> Statement {
        let target = try assignmentTarget(allowsNamespace: true)
        if skipSymbol("=") { return .set(target, try tupleOrExpression(), line: line) }
        let filters = isSymbol("|") ? try filterChain() : []
        return .setBlock(target, filters: filters, body: try block(until: "endset"), line: line)
    }

    private mutating func macroBlock(_ line: Int) throws(MartletError) -> Statement {
        let text = try expect(.name, "the name of a macro")
        let name = number(of: text)
        return .macro(try macro(name, text, until: "endmacro") { _ throws(MartletError) in }, line: line)
    }

    /// Parameters, whatever `rest` reads, and the body.
    private mutating func macro(
        _ name: Int, _ text: String, until end: String, rest: (inout TemplateParser) throws(MartletError) -> Void
    ) throws(MartletError) -> MacroBlock {
        let start = mentioned.count
        let parameters = isSymbol("(") ? try parameters() : []
        try rest(&self)
        let outerLoops = loopDepth
        loopDepth = 0
        let body = try block(until: end)
        loopDepth = outerLoops
        func extra(_ text: String) -> Int? {
            guard let number = program.names[text], mentioned[start...].contains(number),
                !parameters.contains(where: { $0.name == number })
            else { return nil }
            return number
        }
        return MacroBlock(
            name: name, text: text, parameters: parameters, body: body,
            extras: (
                extra("varargs"), extra("kwargs"),
                program.names["caller"].flatMap { n in mentioned[start...].contains(n) ? n : nil }
            ))
    }

    private mutating func parameters() throws(MartletError) -> [MacroBlock.Parameter] {
        var parameters: [MacroBlock.Parameter] = []
        try expectSymbol("(")
        while !isSymbol(")") {
            if !parameters.isEmpty { try expectSymbol(",") }
            let text = try expect(.name, "the name of a parameter")
            let preset = skipSymbol("=") ? try expression() : nil
            if preset == nil, parameters.last?.preset != nil {
                throw failure("a parameter without a default follows one with a default")
            }
            parameters.append(.init(name: number(of: text), text: text, preset: preset))
        }
        try expectSymbol(")")
        return parameters
    }

    private mutating func callBlock(_ line: Int) throws(MartletError) -> Statement {
        var target: (Expression, CallArguments)?
        let caller = try macro(number(of: "caller"), "caller", until: "endcall") { parser throws(MartletError) in
            guard case .call(let callee, let arguments, _) = try parser.expression() else {
                throw parser.failure("'{% call %}' needs a call of a macro", line: line)
            }
            target = (callee, arguments)
        }
        guard let target else { throw failure("'{% call %}' needs a call of a macro", line: line) }
        return .callBlock(target.0, target.1, caller: caller, line: line)
    }

    private mutating func withBlock(_ line: Int) throws(MartletError) -> Statement {
        var values: [(target: AssignmentTarget, value: Expression)] = []
        while current.kind != .blockEnd, !isSymbol(":") {
            if !values.isEmpty { try expectSymbol(",") }
            let target = try assignmentTarget(allowsNamespace: false, allowsTuple: false)
            try expectSymbol("=")
            values.append((target, try expression()))
        }
        return .with(values, body: try block(until: "endwith"), line: line)
    }

    // MARK: targets

    private mutating func assignmentTarget(
        allowsNamespace: Bool, allowsTuple: Bool = true
    ) throws(MartletError) -> AssignmentTarget {
        var targets = [try singleTarget(allowsNamespace)]
        var isTuple = false
        while allowsTuple, skipSymbol(",") {
            isTuple = true
            guard current.kind == .name || isSymbol("("), !isName("in") else { break }
            targets.append(try singleTarget(allowsNamespace))
        }
        return isTuple ? .tuple(targets) : targets[0]
    }

    private mutating func singleTarget(_ allowsNamespace: Bool) throws(MartletError) -> AssignmentTarget {
        if skipSymbol("(") {
            let target = try nested { parser throws(MartletError) in
                try parser.assignmentTarget(allowsNamespace: allowsNamespace)
            }
            try expectSymbol(")")
            if case .tuple = target { return target }
            return target
        }
        let text = try expect(.name, "a variable")
        guard !["true", "false", "none", "True", "False", "None"].contains(text) else {
            throw failure("'\(text)' cannot be assigned to")
        }
        let name = number(of: text)
        guard allowsNamespace, skipSymbol(".") else { return .name(name) }
        return .attribute(namespace: name, text, attribute: try expect(.name, "an attribute"))
    }
}
