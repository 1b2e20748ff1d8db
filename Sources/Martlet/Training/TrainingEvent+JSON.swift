internal import MartletCore

extension TrainingEvent {
    /// The event as one line for machines: an object with its kind under "event".
    public var json: String {
        let (kind, fields): (String, JSON) =
            switch self {
            case .started(let overview): ("started", overview.json)
            case .state(let state): ("state", ["state": .string(state.rawValue)])
            case .step(let metrics): ("step", metrics.json)
            case .gradientsChecked(let check): ("gradients", ["text": .string(check.description)])
            case .evaluated(let metrics): ("evaluated", metrics.json)
            case .saved(let folder, let step): ("saved", ["folder": .string(folder), "step": .integer(step)])
            case .note(let text): ("note", ["text": .string(text)])
            case .finished(let result): ("finished", result.json)
            }
        var object: JSONObject = ["event": .string(kind)]
        for (key, value) in fields.object ?? [:] { object[key] = value }
        return JSON.object(object).text()
    }
}

extension TrainingOverview {
    fileprivate var json: JSON {
        func table(_ rows: [Row]) -> JSON {
            .array(
                rows.map {
                    ["name": .string($0.name), "value": .string($0.value), "note": $0.note.map(JSON.string) ?? .null]
                })
        }
        return [
            "total_steps": .integer(totalSteps), "steps_per_epoch": .integer(stepsPerEpoch),
            "done_steps": .integer(doneSteps),
            "resumed_from": resumedFrom.map(JSON.string) ?? .null, "memory": table(memory), "data": table(data),
            "trainable_parameters": .integer(trainable.parameterCount),
            "total_parameters": .integer(trainable.totalCount),
        ]
    }
}

extension TrainingResult {
    fileprivate var json: JSON {
        [
            "end": .string(end.rawValue), "step": .integer(step), "last_loss": lastLoss.map(JSON.number) ?? .null,
            "best_step": best.map { .integer($0.step) } ?? .null, "best_loss": best.map { .number($0.loss) } ?? .null,
            "checkpoint": checkpoint.map(JSON.string) ?? .null, "exports": .array(exports.map(JSON.string)),
            "report": .string(report),
        ]
    }
}
