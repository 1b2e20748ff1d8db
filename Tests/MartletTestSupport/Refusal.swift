package import MartletCore
package import Testing

/// Expects `body` to fail with an error that says what to do; returns it for closer looks.
@discardableResult
package func expectRefusal(
    _ what: String, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) -> MartletError? {
    do {
        try body()
        Issue.record("\(what): was accepted", sourceLocation: sourceLocation)
    } catch let error as MartletError {
        let isComplete = !error.problem.isEmpty && !(error.remedy ?? "").isEmpty && error.reason != nil
        #expect(isComplete, "\(what): the error does not help: \(error)", sourceLocation: sourceLocation)
        return error
    } catch {
        Issue.record("\(what): threw \(error)", sourceLocation: sourceLocation)
    }
    return nil
}
