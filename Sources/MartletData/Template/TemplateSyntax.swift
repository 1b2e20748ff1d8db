// What the parser makes of a template: plain values, shared by all renderings.

/// A parsed template.
struct TemplateProgram: Sendable {
    /// The template as errors name it.
    var name: String
    var body: [Statement] = []
    /// The number of every name that occurs, for scopes to find variables by.
    var names: [String: Int] = [:]
    var hasGenerationBlocks = false
}

indirect enum Expression: Sendable {
    enum Literal: Sendable {
        case none
        case bool(Bool)
        case int(Int)
        case float(Double)
        case string(String)
    }
    enum Unary: Sendable { case plus, minus, not }
    enum Binary: String, Sendable {
        case add = "+"
        case subtract = "-"
        case multiply = "*"
        case divide = "/"
        case floorDivide = "//"
        case modulo = "%"
        case power = "**"
    }
    enum Comparison: String, Sendable {
        case equal = "=="
        case notEqual = "!="
        case less = "<"
        case lessOrEqual = "<="
        case greater = ">"
        case greaterOrEqual = ">="
        case contained = "in"
        case notContained = "not in"
    }

    case literal(Literal)
    case name(Int, String)
    case list([Expression])
    case tuple([Expression])
    case dict([(key: Expression, value: Expression)])
    case attribute(Expression, AttributeName)
    case item(Expression, Expression)
    case slice(Expression, start: Expression?, stop: Expression?, step: Expression?)
    case call(Expression, CallArguments, line: Int)
    case filter(Expression, FilterCall)
    case test(Expression, TestCall)
    case unary(Unary, Expression)
    case binary(Binary, Expression, Expression)
    case concatenation([Expression])
    case comparison(Expression, [(Comparison, Expression)])
    case and(Expression, Expression)
    case or(Expression, Expression)
    case condition(test: Expression, then: Expression, otherwise: Expression?)
}

/// A name after a dot, with the method it may mean.
struct AttributeName: Sendable {
    let text: String
    let method: TemplateMethod?

    init(_ text: String) {
        self.text = text
        method = TemplateMethod(rawValue: text)
    }
}

struct CallArguments: Sendable {
    var positional: [Expression] = []
    var named: [(name: String, value: Expression)] = []
    var positionalList: Expression?
    var namedDict: Expression?
}

struct FilterCall: Sendable {
    let name: String
    let filter: TemplateFilter?
    let arguments: CallArguments
    let line: Int
}

struct TestCall: Sendable {
    let name: String
    let test: TemplateTest?
    let arguments: CallArguments
    let line: Int
}

/// Where `set` and `for` put a value.
indirect enum AssignmentTarget: Sendable {
    case name(Int)
    case attribute(namespace: Int, String, attribute: String)
    case tuple([AssignmentTarget])
}

indirect enum Statement: Sendable {
    case text(String)
    case output(Expression, line: Int)
    case ifElse([(test: Expression, body: [Statement])], otherwise: [Statement], line: Int)
    case forLoop(ForBlock)
    case set(AssignmentTarget, Expression, line: Int)
    case setBlock(AssignmentTarget, filters: [FilterCall], body: [Statement], line: Int)
    case macro(MacroBlock, line: Int)
    case callBlock(Expression, CallArguments, caller: MacroBlock, line: Int)
    case filterBlock([FilterCall], body: [Statement], line: Int)
    case with([(target: AssignmentTarget, value: Expression)], body: [Statement], line: Int)
    case generation([Statement], line: Int)
    case breakLoop
    case continueLoop
}

final class ForBlock: Sendable {
    let target: AssignmentTarget
    let source: Expression
    let filter: Expression?
    let isRecursive: Bool
    let body: [Statement]
    let otherwise: [Statement]
    let line: Int
    /// The number of the name `loop`.
    let loopName: Int

    init(
        target: AssignmentTarget, source: Expression, filter: Expression?, isRecursive: Bool, body: [Statement],
        otherwise: [Statement], line: Int, loopName: Int
    ) {
        (self.target, self.source, self.filter, self.isRecursive) = (target, source, filter, isRecursive)
        (self.body, self.otherwise, self.line, self.loopName) = (body, otherwise, line, loopName)
    }
}

/// A macro, or the body of a `call` block as the macro `caller`.
final class MacroBlock: Sendable {
    struct Parameter: Sendable {
        let name: Int
        let text: String
        let preset: Expression?
    }
    let name: Int
    let text: String
    let parameters: [Parameter]
    let body: [Statement]
    /// The numbers of `varargs`, `kwargs` and `caller`, where the macro mentions them.
    let extras: (varargs: Int?, kwargs: Int?, caller: Int?)

    init(
        name: Int, text: String, parameters: [Parameter], body: [Statement],
        extras: (varargs: Int?, kwargs: Int?, caller: Int?)
    ) {
        (self.name, self.text, self.parameters, self.body, self.extras) = (name, text, parameters, body, extras)
    }
}
