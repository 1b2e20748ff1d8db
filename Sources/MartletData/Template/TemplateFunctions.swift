internal import MartletCore

/// The global functions of transformers' environment.
enum TemplateFunction: String, CaseIterable {
    case range, dict, namespace, cycler, joiner
    case raiseException = "raise_exception"
    case strftimeNow = "strftime_now"

    static var globals: [TemplateFunction] { allCases }
}

extension TemplateInterpreter {
    func call(_ function: TemplateFunction, _ arguments: CallValues) throws(MartletError) -> TemplateValue {
        switch function {
        case .range: return try range(arguments)
        case .dict: return try dict(arguments)
        case .namespace:
            let namespace = makeNamespace()
            guard case .dict(let box) = try dict(arguments) else { return .none }
            for entry in box.entries {
                guard case .string(let name) = entry.key else {
                    throw failure("the attributes of a namespace are strings")
                }
                try requireStorable(name)
                namespace.set(name, entry.value)
            }
            return .namespace(namespace)
        case .cycler:
            guard !arguments.positional.isEmpty else { throw failure("'cycler' needs at least one item") }
            return .callable(CallableBox(.cycler(ListBox(arguments.positional))))
        case .joiner:
            let separator = try bind(arguments, to: "joiner", ["sep"])[0]
            return .callable(CallableBox(.joiner(try string(separator, "joiner") ?? ", ")))
        case .raiseException:
            let message = try bind(arguments, to: "raise_exception", ["message"], required: 1)[0] ?? .none
            throw MartletError(
                "the chat template refuses this conversation", in: "\(program.name), line \(line)",
                because: try text(message), fix: "change the conversation as the template asks, or use another template"
            )
        case .strftimeNow:
            let format = try string(try bind(arguments, to: "strftime_now", ["format"], required: 1)[0], "strftime_now")
            return try makeString(clock.formatted(format ?? ""))
        }
    }

    private func range(_ arguments: CallValues) throws(MartletError) -> TemplateValue {
        var bounds: [Int] = []
        for value in arguments.positional { bounds.append(try integer(value, "range") ?? 0) }
        guard (1...3).contains(bounds.count), arguments.named.isEmpty else {
            throw failure("'range' takes one to three integers")
        }
        let start = bounds.count > 1 ? bounds[0] : 0
        let stop = bounds.count > 1 ? bounds[1] : bounds[0]
        let step = bounds.count > 2 ? bounds[2] : 1
        guard step != 0 else { throw failure("the step of 'range' is 0") }
        let isEmpty = step > 0 ? start >= stop : start <= stop
        let (span, overflow) = stop.subtractingReportingOverflow(start)
        let count = isEmpty ? 0 : overflow ? .max : Int((span.magnitude - 1) / step.magnitude + 1)
        guard count <= limits.range else { throw exhausted("a range is longer than \(limits.range)") }
        return .range(RangeBox(start: start, stop: stop, step: step, count: count))
    }

    /// `dict(mapping or pairs, name=value, ...)`; a copy of a chat message still is that message.
    private func dict(_ arguments: CallValues) throws(MartletError) -> TemplateValue {
        guard arguments.positional.count <= 1 else { throw failure("'dict' takes at most one positional argument") }
        var entries: [(key: TemplateValue, value: TemplateValue)] = []
        var message: Int?
        switch arguments.positional.first {
        case .dict(let box):
            entries = box.entries
            message = box.message
        case .namespace(let box): entries = box.attributes.map { (.string($0.name), $0.value) }
        case let pairs?:
            for pair in try items(of: pairs) {
                let items = try items(of: pair)
                guard items.count == 2 else { throw failure("'dict' needs pairs of key and value") }
                entries.append((items[0], items[1]))
            }
        case nil: break
        }
        for argument in arguments.named { entries.append((.string(argument.name), argument.value)) }
        return try makeDict(entries, message: message)
    }
}
