internal import MartletCore

/// A value inside a chat template: Python's types, as Jinja2 shows them.
///
/// Lists, tuples and dictionaries never change once made (the sandbox of transformers forbids it too); only a
/// namespace does. Strings count in Unicode scalars, like Python's.
enum TemplateValue {
    /// A missing variable, key or attribute; the text names it for error messages.
    case undefined(String)
    case none
    case bool(Bool)
    case int(Int)
    case float(Double)
    case string(String)
    case list(ListBox)
    case tuple(ListBox)
    case dict(DictBox)
    case view(DictView)
    case range(RangeBox)
    /// What filters such as `map` and `select` give: read once, always true, without a length.
    case iterator(IteratorBox)
    case namespace(NamespaceBox)
    case loop(LoopBox)
    case callable(CallableBox)
}

/// The items of a list or tuple, and how deep values are nested in it.
final class ListBox {
    let items: [TemplateValue]
    let depth: Int

    init(_ items: [TemplateValue]) {
        self.items = items
        depth = 1 + items.reduce(0) { max($0, $1.depth) }
    }
}

/// A dictionary in insertion order. `message` is the position of the chat message it is, if it is one.
final class DictBox {
    let entries: [(key: TemplateValue, value: TemplateValue)]
    let message: Int?
    let depth: Int

    init(_ entries: [(key: TemplateValue, value: TemplateValue)], message: Int? = nil) {
        self.entries = entries
        self.message = message
        depth = 1 + entries.reduce(0) { max($0, $1.value.depth, $1.key.depth) }
    }

    subscript(name: String) -> TemplateValue? {
        for entry in entries {
            if case .string(let key) = entry.key, sameText(key, name) { return entry.value }
        }
        return nil
    }
}

/// `d.keys()`, `d.values()` and `d.items()`.
final class DictView {
    enum Kind: String { case keys, values, items }
    let kind: Kind
    let dict: DictBox

    init(_ kind: Kind, _ dict: DictBox) {
        self.kind = kind
        self.dict = dict
    }

    var items: [TemplateValue] {
        switch kind {
        case .keys: dict.entries.map(\.key)
        case .values: dict.entries.map(\.value)
        case .items: dict.entries.map { .tuple(ListBox([$0.key, $0.value])) }
        }
    }
}

/// `range(start, stop, step)`; at most `TemplateLimits.range` long.
final class RangeBox {
    let start: Int, stop: Int, step: Int
    let count: Int

    init(start: Int, stop: Int, step: Int, count: Int) {
        (self.start, self.stop, self.step, self.count) = (start, stop, step, count)
    }

    subscript(index: Int) -> Int { start + index * step }
    var items: [TemplateValue] { (0..<count).map { .int(self[$0]) } }
}

/// A sequence that can be walked through once.
final class IteratorBox {
    private(set) var remaining: ArraySlice<TemplateValue>
    let depth: Int
    /// What Python calls its type.
    let typeName: String

    init(_ items: [TemplateValue], _ typeName: String = "generator") {
        remaining = items[...]
        self.typeName = typeName
        depth = 1 + items.reduce(0) { max($0, $1.depth) }
    }

    func next() -> TemplateValue? { remaining.popFirst() }

    func takeAll() -> [TemplateValue] {
        defer { remaining = [] }
        return Array(remaining)
    }
}

/// `namespace(...)`: the one thing a template may change from inside a loop.
final class NamespaceBox {
    var attributes: [(name: String, value: TemplateValue)] = []

    subscript(name: String) -> TemplateValue? { attributes.first { sameText($0.name, name) }?.value }

    func set(_ name: String, _ value: TemplateValue) {
        if let i = attributes.firstIndex(where: { sameText($0.name, name) }) {
            attributes[i].value = value
        } else {
            attributes.append((name, value))
        }
    }
}

/// The variable `loop` of a `for` block.
final class LoopBox {
    var items: [TemplateValue]
    let count: Int
    var index = 0
    let depth0: Int
    /// Set for `{% for … recursive %}`: what `loop(items)` runs again.
    let recursion: Recursion?
    var lastChanged: [TemplateValue]?

    struct Recursion {
        let block: ForBlock
        let scope: Scope
    }

    init(_ items: [TemplateValue], depth0: Int, recursion: Recursion?) {
        self.items = items
        count = items.count
        self.depth0 = depth0
        self.recursion = recursion
    }
}

/// Something a template can call.
final class CallableBox {
    enum Kind {
        case function(TemplateFunction)
        case method(TemplateValue, TemplateMethod)
        case macro(MacroBlock, Scope)
        case cycler(ListBox)
        case joiner(String)
        case loopCycle(LoopBox)
        case loopChanged(LoopBox)
    }
    var kind: Kind
    /// The position of a cycler, or how often a joiner was used.
    var position = 0

    init(_ kind: Kind) { self.kind = kind }
}

extension TemplateValue {
    /// Levels of containers inside, so that no walk over a value can exhaust the stack.
    var depth: Int {
        switch self {
        case .list(let box), .tuple(let box): box.depth
        case .dict(let box): box.depth
        case .view(let view): view.dict.depth + 1
        case .iterator(let box): box.depth
        case .callable(let box):
            switch box.kind {
            case .method(let receiver, _): receiver.depth + 1
            case .cycler(let list): list.depth + 1
            default: 1
            }
        default: 0
        }
    }

    /// Python's truth of a value.
    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let value): value
        case .int(let value): value != 0
        case .float(let value): value != 0
        case .string(let value): !value.isEmpty
        case .list(let box), .tuple(let box): !box.items.isEmpty
        case .dict(let box): !box.entries.isEmpty
        case .view(let view): !view.dict.entries.isEmpty
        case .range(let range): range.count > 0
        case .iterator, .namespace, .callable: true
        case .loop(let loop): loop.count > 0
        }
    }

    var isUndefined: Bool { if case .undefined = self { true } else { false } }
    var isNone: Bool { if case .none = self { true } else { false } }

    /// What Python calls the type, for error messages.
    var typeName: String {
        switch self {
        case .undefined: "Undefined"
        case .none: "NoneType"
        case .bool: "bool"
        case .int: "int"
        case .float: "float"
        case .string: "str"
        case .list: "list"
        case .tuple: "tuple"
        case .dict: "dict"
        case .view(let view): "dict_" + view.kind.rawValue
        case .range: "range"
        case .iterator(let box): box.typeName
        case .namespace: "Namespace"
        case .loop: "LoopContext"
        case .callable: "function"
        }
    }

    /// The value as an integer where Python takes one as an index: integers and booleans.
    var index: Int? {
        switch self {
        case .int(let value): value
        case .bool(let value): value ? 1 : 0
        default: nil
        }
    }

    /// The chat message this value is, or the first one in this tuple.
    var message: Int? {
        switch self {
        case .dict(let box): box.message
        case .tuple(let box): box.items.lazy.compactMap { if case .dict(let d) = $0 { d.message } else { nil } }.first
        default: nil
        }
    }
}

/// The variables of one block; names are numbers given by the parser.
final class Scope {
    let parent: Scope?
    private var names: [Int] = []
    private var values: [TemplateValue] = []

    init(parent: Scope?) { self.parent = parent }

    func find(_ name: Int) -> TemplateValue? {
        var scope = self
        while true {
            for i in scope.names.indices where scope.names[i] == name { return scope.values[i] }
            guard let parent = scope.parent else { return nil }
            scope = parent
        }
    }

    func set(_ name: Int, _ value: TemplateValue) {
        for i in names.indices where names[i] == name {
            values[i] = value
            return
        }
        names.append(name)
        values.append(value)
    }

    func removeAll() {
        names.removeAll(keepingCapacity: true)
        values.removeAll(keepingCapacity: true)
    }
}
