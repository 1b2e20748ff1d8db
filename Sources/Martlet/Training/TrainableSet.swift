internal import MartletCore
internal import MartletModel

/// The trained tensors by group, told before the first step.
public struct TrainableSet: Sendable, Equatable {
    /// One kind of trained tensor.
    public struct Group: Sendable, Equatable {
        /// "attention LoRA", "router", ...
        public var name: String
        /// Tensors in the group.
        public var tensorCount: Int
        /// Numbers in those tensors.
        public var parameterCount: Int
    }

    /// In the order of the model.
    public var groups: [Group]
    /// Numbers in the whole model, the trained ones included.
    public var totalCount: Int

    /// Tensors in all groups.
    public var tensorCount: Int { groups.reduce(0) { $0 + $1.tensorCount } }
    /// Numbers in all groups.
    public var parameterCount: Int { groups.reduce(0) { $0 + $1.parameterCount } }
    /// The share of the model's numbers that is trained.
    public var share: Double { Double(parameterCount) / Double(max(totalCount, 1)) }

    init(_ parameters: [Parameter], totalCount: Int) throws(MartletError) {
        guard !parameters.isEmpty else {
            throw MartletError(
                "nothing would be trained", because: "the recipe selects no tensor of this model",
                fix: "check 'target_modules' and 'method'")
        }
        groups = []
        self.totalCount = totalCount
        var names = Set<String>()
        for parameter in parameters {
            guard names.insert(parameter.name).inserted else {
                throw MartletError(
                    "two trained tensors have one name", in: "tensor '\(parameter.name)'", fix: "report this as a bug")
            }
            let index = groups.firstIndex { $0.name == parameter.group } ?? groups.count
            if index == groups.count { groups.append(Group(name: parameter.group, tensorCount: 0, parameterCount: 0)) }
            groups[index].tensorCount += 1
            groups[index].parameterCount += parameter.value.count
        }
    }
}
