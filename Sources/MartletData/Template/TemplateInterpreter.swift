internal import MartletCore

/// Renders one conversation: walks the statements and writes text. Expressions are in TemplateEvaluator.swift.
final class TemplateInterpreter {
    let program: TemplateProgram
    let limits: TemplateLimits
    let clock: TemplateDate
    /// The line being rendered, for errors.
    var line = 1
    var depth = 0
    let stepLimit: Int
    var stepsLeft: Int
    var scope: Scope
    /// The text written so far, of the rendering or of the innermost capture.
    var out = ""
    /// Above 0 while text is captured by a macro call, `set` block or the like instead of being written.
    var captureDepth = 0
    var trace = MessageTrace()
    /// Made during this rendering; cut at its end, for they may refer to each other in circles.
    private var scopes: [Scope] = []
    private var namespaces: [NamespaceBox] = []

    enum Flow { case next, breakLoop, continueLoop }

    init(
        _ program: TemplateProgram, variables: [(name: String, value: TemplateValue)], clock: TemplateDate,
        limits: TemplateLimits, steps: Int
    ) {
        self.program = program
        self.clock = clock
        self.limits = limits
        stepLimit = steps
        stepsLeft = steps
        let globals = Scope(parent: nil)
        for function in TemplateFunction.globals {
            if let name = program.names[function.rawValue] {
                globals.set(name, .callable(CallableBox(.function(function))))
            }
        }
        let context = Scope(parent: globals)
        for variable in variables {
            if let name = program.names[variable.name] { context.set(name, variable.value) }
        }
        scope = Scope(parent: context)
    }

    func render(_ messages: [JSONObject]) throws(MartletError) -> Rendering {
        defer {
            for scope in scopes { scope.removeAll() }
            for namespace in namespaces { namespace.attributes = [] }
        }
        _ = try execute(program.body)
        trace.changeOwner(to: nil, at: out.utf8.count)
        return Rendering(text: out, messages: messages, trace: trace, hasGenerationBlocks: program.hasGenerationBlocks)
    }

    func makeNamespace() -> NamespaceBox {
        let namespace = NamespaceBox()
        namespaces.append(namespace)
        return namespace
    }

    /// Keeps the current scope alive in a closure, and sees to it that the circle is cut in the end.
    private func captureScope() -> Scope {
        if scopes.last !== scope { scopes.append(scope) }
        return scope
    }

    // MARK: statements

    @discardableResult
    func execute(_ statements: [Statement]) throws(MartletError) -> Flow {
        try descend()
        defer { depth -= 1 }
        for statement in statements {
            try charge(1)
            switch statement {
            case .text(let text): try write(text)
            case .output(let expression, let line):
                self.line = line
                try output(expression)
            case .ifElse(let branches, let otherwise, let line):
                self.line = line
                let flow = try execute(try chosen(branches) ?? otherwise)
                if flow != .next { return flow }
            case .forLoop(let block): try loop(block)
            case .breakLoop: return .breakLoop
            case .continueLoop: return .continueLoop
            default: try executeRare(statement)
            }
        }
        return .next
    }

    private func executeRare(_ statement: Statement) throws(MartletError) {
        switch statement {
        case .set(let target, let expression, let line):
            self.line = line
            try assign(try evaluate(expression), to: target)
        case .setBlock(let target, let filters, let body, let line):
            try assign(try filtered(body, filters, line), to: target)
        case .macro(let block, let line):
            self.line = line
            scope.set(block.name, .callable(CallableBox(.macro(block, captureScope()))))
        case .callBlock(let callee, let arguments, let caller, let line):
            self.line = line
            var arguments = try evaluate(arguments)
            arguments.named.append(("caller", .callable(CallableBox(.macro(caller, captureScope())))))
            let function = try evaluate(callee)
            try write(try text(try call(function, arguments)))
        case .filterBlock(let filters, let body, let line):
            try write(try text(try filtered(body, filters, line)))
        case .with(let values, let body, let line):
            self.line = line
            try with(values, body)
        case .generation(let body, let line):
            self.line = line
            try generation(body)
        default: return
        }
    }

    private func chosen(_ branches: [(test: Expression, body: [Statement])]) throws(MartletError) -> [Statement]? {
        for branch in branches where try evaluate(branch.test).isTrue { return branch.body }
        return nil
    }

    func write(_ text: String) throws(MartletError) {
        try charge(bytes: text.utf8.count)
        out += text
        if out.utf8.count > limits.textBytes { throw exhausted("it writes more than \(limits.textBytes) bytes") }
    }

    /// `{{ expression }}`. A macro called there writes in place, so that spans inside it are known.
    private func output(_ expression: Expression) throws(MartletError) {
        if case .call(let callee, let arguments, _) = expression {
            let function: TemplateValue
            if case .name = callee {
                function = try evaluate(callee)
            } else {
                return try write(try text(try evaluate(expression)))
            }
            let values = try evaluate(arguments)
            if case .callable(let box) = function, case .macro(let block, let closure) = box.kind {
                return try run(block, closure, values)
            }
            return try write(try text(try call(function, values)))
        }
        try write(try text(try evaluate(expression)))
    }

    /// What `body` writes, as a string.
    func capture(_ body: () throws(MartletError) -> Void) throws(MartletError) -> String {
        let outer = out
        out = ""
        captureDepth += 1
        defer {
            captureDepth -= 1
            out = outer
        }
        try body()
        return out
    }

    /// Runs `body` in a scope of its own.
    func scoped(_ parent: Scope? = nil, _ body: () throws(MartletError) -> Void) throws(MartletError) {
        let outer = scope
        scope = Scope(parent: parent ?? outer)
        defer { scope = outer }
        try body()
    }

    private func filtered(
        _ body: [Statement], _ filters: [FilterCall], _ line: Int
    ) throws(MartletError) -> TemplateValue {
        self.line = line
        let text = try capture { () throws(MartletError) in
            try scoped { () throws(MartletError) in try execute(body) }
        }
        var value = TemplateValue.string(text)
        for filter in filters { value = try apply(filter, to: value) }
        return value
    }

    private func with(
        _ values: [(target: AssignmentTarget, value: Expression)], _ body: [Statement]
    ) throws(MartletError) {
        var evaluated: [TemplateValue] = []
        for value in values { evaluated.append(try evaluate(value.value)) }
        try scoped { () throws(MartletError) in
            for (i, value) in values.enumerated() { try assign(evaluated[i], to: value.target) }
            try execute(body)
        }
    }

    private func generation(_ body: [Statement]) throws(MartletError) {
        let start = out.utf8.count
        try scoped { () throws(MartletError) in try execute(body) }
        if captureDepth > 0 {
            trace.lostGeneration = true
        } else if out.utf8.count > start {
            trace.generationSpans.append(start..<out.utf8.count)
        }
    }

    // MARK: assignment

    func assign(_ value: TemplateValue, to target: AssignmentTarget) throws(MartletError) {
        switch target {
        case .name(let name): scope.set(name, value)
        case .attribute(let name, let text, let attribute):
            guard let found = scope.find(name), case .namespace(let namespace) = found else {
                throw failure(
                    "'\(text)' is not a namespace, so '\(text).\(attribute)' cannot be set",
                    fix: "make it with {% set \(text) = namespace() %} first")
            }
            try requireStorable(attribute)
            namespace.set(attribute, value)
        case .tuple(let targets):
            let items = try items(of: value)
            guard items.count == targets.count else {
                throw failure("\(targets.count) variables cannot take \(items.count) values")
            }
            for (target, item) in zip(targets, items) { try assign(item, to: target) }
        }
    }

    func requireStorable(_ attribute: String) throws(MartletError) {
        guard !attribute.hasText(prefix: "_") else {
            throw failure(
                "a namespace cannot hold '\(attribute)', for it starts with an underscore", fix: "rename the attribute")
        }
    }

    // MARK: loops

    private func loop(_ block: ForBlock) throws(MartletError) {
        line = block.line
        try run(block, over: try evaluate(block.source), depth0: 0)
    }

    /// Runs the block once for each item; also what `loop(items)` does inside a recursive loop.
    func run(_ block: ForBlock, over source: TemplateValue, depth0: Int) throws(MartletError) {
        line = block.line
        var items = try items(of: source)
        if let filter = block.filter { items = try kept(items, filter, block) }
        try charge(items.count)
        if items.isEmpty {
            try scoped { () throws(MartletError) in try execute(block.otherwise) }
            return
        }
        let outer = scope
        let recursion = block.isRecursive ? LoopBox.Recursion(block: block, scope: outer) : nil
        let loop = LoopBox(items, depth0: depth0, recursion: recursion)
        defer {
            scope = outer
            loop.items = []
        }
        let owner = trace.owner
        if captureDepth == 0, owner == nil { trace.pass += 1 }
        for (i, item) in items.enumerated() {
            loop.index = i
            scope = Scope(parent: outer)
            try assign(item, to: block.target)
            scope.set(block.loopName, .loop(loop))
            takeOver(item, from: owner)
            if try execute(block.body) == .breakLoop { break }
        }
        if captureDepth == 0 { trace.changeOwner(to: owner, at: out.utf8.count) }
    }

    /// Text now belongs to the message `item` is, unless this is a look back from a later message.
    private func takeOver(_ item: TemplateValue, from owner: Int?) {
        guard captureDepth == 0 else { return }
        let message = item.message
        if let message, message >= owner ?? 0 {
            trace.changeOwner(to: message, at: out.utf8.count)
        } else {
            trace.changeOwner(to: owner, at: out.utf8.count)
        }
    }

    private func kept(
        _ items: [TemplateValue], _ filter: Expression, _ block: ForBlock
    ) throws(MartletError) -> [TemplateValue] {
        let outer = scope
        defer { scope = outer }
        var kept: [TemplateValue] = []
        for item in items {
            scope = Scope(parent: outer)
            try assign(item, to: block.target)
            if try evaluate(filter).isTrue { kept.append(item) }
        }
        return kept
    }

    // MARK: macros

    /// Binds the arguments and runs the macro's body, writing to `out`.
    func run(_ block: MacroBlock, _ closure: Scope, _ arguments: CallValues) throws(MartletError) {
        try descend()
        let outer = scope, outerLine = line
        defer {
            depth -= 1
            scope = outer
            line = outerLine
        }
        scope = Scope(parent: closure)
        try bind(block, arguments)
        try execute(block.body)
    }

    private func bind(_ block: MacroBlock, _ arguments: CallValues) throws(MartletError) {
        var named = arguments.named
        for (i, parameter) in block.parameters.enumerated() {
            if i < arguments.positional.count {
                scope.set(parameter.name, arguments.positional[i])
            } else if let at = named.firstIndex(where: { sameText($0.name, parameter.text) }) {
                scope.set(parameter.name, named.remove(at: at).value)
            } else if let preset = parameter.preset {
                scope.set(parameter.name, try evaluate(preset))
            } else {
                scope.set(parameter.name, .undefined(parameter.text))
            }
        }
        if let caller = block.extras.caller, !block.parameters.contains(where: { $0.name == caller }) {
            let at = named.firstIndex { $0.name == "caller" }
            scope.set(caller, at.map { named.remove(at: $0).value } ?? .undefined("caller"))
        }
        if let kwargs = block.extras.kwargs {
            scope.set(kwargs, try makeDict(named.map { (.string($0.name), $0.value) }))
        } else if let name = named.first?.name {
            throw failure("the macro '\(block.text)' has no parameter '\(name)'")
        }
        let rest = Array(arguments.positional.dropFirst(block.parameters.count))
        if let varargs = block.extras.varargs {
            scope.set(varargs, try makeTuple(rest))
        } else if !rest.isEmpty {
            throw failure(
                "the macro '\(block.text)' takes \(block.parameters.count) arguments, not \(arguments.positional.count)"
            )
        }
    }
}
