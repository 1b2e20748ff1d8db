internal import MartletCore

/// The evaluated arguments of a call.
struct CallValues {
    var positional: [TemplateValue] = []
    var named: [(name: String, value: TemplateValue)] = []
}

// The values of expressions.
extension TemplateInterpreter {
    func evaluate(_ expression: Expression) throws(MartletError) -> TemplateValue {
        try charge(1)
        switch expression {
        case .literal(let literal): return value(of: literal)
        case .name(let name, let text): return scope.find(name) ?? .undefined(text)
        default: break
        }
        try descend()
        defer { depth -= 1 }
        switch expression {
        case .attribute(let object, let name): return try attribute(name, of: try evaluate(object))
        case .and(let a, let b):
            let left = try evaluate(a)
            return left.isTrue ? try evaluate(b) : left
        case .or(let a, let b):
            let left = try evaluate(a)
            return left.isTrue ? left : try evaluate(b)
        case .unary(.not, let operand): return .bool(try !evaluate(operand).isTrue)
        case .condition(let test, let then, let otherwise):
            if try evaluate(test).isTrue { return try evaluate(then) }
            return try otherwise.map { e throws(MartletError) in try evaluate(e) }
                ?? .undefined("the value of an 'if' without 'else'")
        case .call(let callee, let arguments, let line): return try evaluateCall(callee, arguments, line)
        case .filter(let operand, let filter): return try apply(filter, to: try evaluate(operand))
        case .test(let operand, let test): return .bool(try passes(test, try evaluate(operand)))
        default: return try evaluateOperation(expression)
        }
    }

    private func evaluateOperation(_ expression: Expression) throws(MartletError) -> TemplateValue {
        switch expression {
        case .item(let object, let key): return try item(try evaluate(key), of: try evaluate(object))
        case .comparison(let first, let rest): return try compare(first, rest)
        case .binary(let operation, let a, let b): return try calculate(operation, try evaluate(a), try evaluate(b))
        case .unary(let operation, let operand): return try negate(operation, try evaluate(operand))
        case .concatenation(let parts):
            var text = ""
            for part in parts { text += try self.text(try evaluate(part)) }
            return try makeString(text)
        case .slice(let object, let start, let stop, let step):
            let object = try evaluate(object)
            return try slice(object, try bound(start), try bound(stop), try bound(step))
        case .list(let items): return try makeList(try evaluate(items))
        case .tuple(let items): return try makeTuple(try evaluate(items))
        case .dict(let entries):
            var values: [(key: TemplateValue, value: TemplateValue)] = []
            for entry in entries { values.append((try evaluate(entry.key), try evaluate(entry.value))) }
            return try makeDict(values)
        default: throw failure("an expression cannot be evaluated")
        }
    }

    private func value(of literal: Expression.Literal) -> TemplateValue {
        switch literal {
        case .none: .none
        case .bool(let value): .bool(value)
        case .int(let value): .int(value)
        case .float(let value): .float(value)
        case .string(let value): .string(value)
        }
    }

    private func evaluate(_ expressions: [Expression]) throws(MartletError) -> [TemplateValue] {
        var values: [TemplateValue] = []
        values.reserveCapacity(expressions.count)
        for expression in expressions { values.append(try evaluate(expression)) }
        return values
    }

    func evaluate(_ arguments: CallArguments) throws(MartletError) -> CallValues {
        var values = CallValues(positional: try evaluate(arguments.positional))
        for argument in arguments.named { values.named.append((argument.name, try evaluate(argument.value))) }
        if let list = arguments.positionalList {
            let more = try items(of: try evaluate(list))
            try charge(more.count)
            values.positional += more
        }
        if let dict = arguments.namedDict {
            guard case .dict(let box) = try evaluate(dict) else { throw failure("'**' needs a dict") }
            for entry in box.entries {
                guard case .string(let name) = entry.key else { throw failure("keywords must be strings") }
                values.named.append((name, entry.value))
            }
        }
        return values
    }

    private func bound(_ expression: Expression?) throws(MartletError) -> TemplateValue {
        guard let expression else { return .none }
        return try evaluate(expression)
    }

    private func compare(
        _ first: Expression, _ rest: [(Expression.Comparison, Expression)]
    ) throws(MartletError) -> TemplateValue {
        var left = try evaluate(first)
        for (operation, expression) in rest {
            let right = try evaluate(expression)
            guard try compare(operation, left, right) else { return .bool(false) }
            left = right
        }
        return .bool(true)
    }

    // MARK: calls

    private func evaluateCall(
        _ callee: Expression, _ arguments: CallArguments, _ line: Int
    ) throws(MartletError) -> TemplateValue {
        if case .attribute(let object, let name) = callee, let method = name.method {
            let receiver = try evaluate(object)
            if method.applies(to: receiver) {
                let values = try evaluate(arguments)
                self.line = line
                return try call(method, on: receiver, values)
            }
            let function = try attribute(name, of: receiver)
            return try call(function, try evaluate(arguments))
        }
        let function = try evaluate(callee)
        let values = try evaluate(arguments)
        self.line = line
        return try call(function, values)
    }

    func call(_ function: TemplateValue, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        switch function {
        case .callable(let box): return try call(box, arguments)
        case .loop(let loop):
            guard let recursion = loop.recursion else {
                throw failure("'loop' can be called only in a loop marked 'recursive'")
            }
            guard let items = arguments.positional.first, arguments.positional.count == 1 else {
                throw failure("'loop(...)' takes the items to go on with")
            }
            let outer = scope
            defer { scope = outer }
            return .string(
                try capture { () throws(MartletError) in
                    scope = recursion.scope
                    try run(recursion.block, over: items, depth0: loop.depth0 + 1)
                })
        case .undefined(let name): throw undefined(name)
        default: throw failure("'\(function.typeName)' object is not callable")
        }
    }

    private func call(_ box: CallableBox, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        switch box.kind {
        case .function(let function): return try call(function, arguments)
        case .method(let receiver, let method): return try call(method, on: receiver, arguments)
        case .macro(let block, let closure):
            return .string(try capture { () throws(MartletError) in try run(block, closure, arguments) })
        case .cycler(let list): return list.items.isEmpty ? .none : nextItem(of: list, box)
        case .joiner(let separator):
            defer { box.position = 1 }
            return .string(box.position == 0 ? "" : separator)
        case .loopCycle(let loop):
            guard !arguments.positional.isEmpty else { throw failure("no items for cycling given") }
            return arguments.positional[loop.index % arguments.positional.count]
        case .loopChanged(let loop):
            if let last = loop.lastChanged, try equal(last, arguments.positional) { return .bool(false) }
            loop.lastChanged = arguments.positional
            return .bool(true)
        }
    }

    private func nextItem(of list: ListBox, _ box: CallableBox) -> TemplateValue {
        defer { box.position = (box.position + 1) % list.items.count }
        return list.items[box.position]
    }

    func undefined(_ name: String) -> MartletError {
        if TemplateMethod.forbidden.contains(name) {
            return failure(
                "'\(name)' would change a value, which templates may not",
                fix: "build a new value with '+', or keep it in a namespace")
        }
        return failure("'\(name)' is undefined", fix: "pass it to the template, or guard its use with 'is defined'")
    }
}
