import MartletCore

extension TokenizerFile {
    /// Reads `added_tokens`. Ids are those of the file; they must agree with the model's vocabulary.
    func addedTokens(_ model: ModelReader) throws(MartletError) -> [AddedToken] {
        guard let list = component("added_tokens")?.json else { return [] }
        guard let items = list.array else { throw Component(json: json, path: "").wrong("added_tokens", "a list") }
        var tokens: [AddedToken] = []
        let known = ByteTable(capacity: items.count)
        var byID: [Int32: String] = [:]
        for (index, item) in items.enumerated() {
            let part = Component(json: item, path: "added_tokens[\(index)]")
            let token = try addedToken(part)
            if token.text.isEmpty { continue }
            guard known.insert(Array(token.text.utf8), token.id), byID.updateValue(token.text, forKey: token.id) == nil
            else {
                throw part.failure(
                    "the added token '\(token.text)' or its id \(token.id) is there twice", fix: "keep one")
            }
            let own = model.id(of: token.text)
            if own != nil ? own != token.id : model.names(token.id) {
                throw part.failure(
                    "the added token '\(token.text)' has the id \(token.id), which the vocabulary contradicts",
                    because: own.map { "there the token has the id \($0)" } ?? "there the id is another token's",
                    fix: "give it the id of the vocabulary, or a free one")
            }
            tokens.append(token)
        }
        return tokens
    }

    private func addedToken(_ part: Component) throws(MartletError) -> AddedToken {
        guard let value = part.json["id"]?.integer, let id = Int32(exactly: value),
            (0...Vocabulary.highestID).contains(id)
        else { throw part.wrong("id", "a token id (0 to \(Vocabulary.highestID))") }
        let special = try part.bool("special", default: false)
        return AddedToken(
            id: id, text: try part.string("content"), singleWord: try part.bool("single_word", default: false),
            stripsLeft: try part.bool("lstrip", default: false), stripsRight: try part.bool("rstrip", default: false),
            isNormalized: try part.bool("normalized", default: !special), isSpecial: special)
    }

    /// Reads `model`: byte-pair encoding with its vocabulary and merges.
    struct ModelReader {
        let tokens: [(text: String, id: Int32)]
        private let part: Component
        private let ids: ByteTable
        private let taken: Set<Int32>

        init(file: TokenizerFile) throws(MartletError) {
            guard let part = file.component("model") else {
                throw MartletError(
                    "the tokenizer has no model", in: "key \"model\"",
                    fix: "check that the file is a whole tokenizer.json")
            }
            // Files of early releases leave the type of BPE out.
            guard part.type == "BPE" || (part.json["type"] == nil && part.json["merges"] != nil) else {
                throw part.unsupported("tokenizer model", ["BPE"])
            }
            self.part = part
            guard let vocabulary = part.json["vocab"]?.object else { throw part.wrong("vocab", "an object") }
            var tokens: [(text: String, id: Int32)] = []
            tokens.reserveCapacity(vocabulary.count)
            let ids = ByteTable(capacity: vocabulary.count)
            var taken: Set<Int32> = []
            taken.reserveCapacity(vocabulary.count)
            for (text, value) in vocabulary {
                guard let number = value.integer, let id = Int32(exactly: number),
                    (0...Vocabulary.highestID).contains(id)
                else { throw part.failure("the id of token '\(text)' is not a token id", fix: "write a whole number") }
                guard taken.insert(id).inserted else {
                    throw part.failure(
                        "two tokens of the vocabulary have the id \(id)", fix: "give '\(text)' another id")
                }
                _ = ids.insert(Array(text.utf8), id)
                tokens.append((text, id))
            }
            self.tokens = tokens
            self.ids = ids
            self.taken = taken
        }

        func id(of text: String) -> Int32? { ids.find(Array(text.utf8)) }
        func names(_ id: Int32) -> Bool { taken.contains(id) }

        func bpe(_ vocabulary: Vocabulary, unitsAreBytes: Bool) throws(MartletError) -> BPEModel {
            if let dropout = part.json["dropout"], !dropout.isNull, dropout.number != 0 {
                throw part.failure(
                    "the tokenizer drops merges at random", because: "\"dropout\" is set",
                    fix: "set \"dropout\" to null")
            }
            var options = BPEModel.Options()
            options.unknownToken = try optionalString("unk_token")
            options.fusesUnknown = try part.bool("fuse_unk", default: false)
            options.fallsBackToBytes = try part.bool("byte_fallback", default: false)
            options.ignoresMerges = try part.bool("ignore_merges", default: false)
            options.continuingPrefix = Array((try optionalString("continuing_subword_prefix") ?? "").utf8)
            options.endSuffix = Array((try optionalString("end_of_word_suffix") ?? "").utf8)
            let merges = try merges(prefix: options.continuingPrefix)
            return try BPEModel(
                vocabulary: vocabulary, tokens: tokens, merges: merges, options: options, unitsAreBytes: unitsAreBytes)
        }

        private func optionalString(_ key: String) throws(MartletError) -> String? {
            guard let value = part.json[key], !value.isNull else { return nil }
            return try part.string(key)
        }

        /// The merges in order of rank: "a b" or ["a", "b"]. The result is the token 'a' followed by 'b' less `prefix`.
        private func merges(prefix: [UInt8]) throws(MartletError) -> [(left: Int32, right: Int32, result: Int32)] {
            guard let list = part.json["merges"]?.array else { throw part.wrong("merges", "a list") }
            var merges: [(left: Int32, right: Int32, result: Int32)] = []
            merges.reserveCapacity(list.count)
            for (rank, item) in list.enumerated() {
                if let text = item.string, text.hasPrefix("#version") { continue }
                guard let (left, right) = sides(of: item) else {
                    throw part.failure(
                        "merge \(rank) is malformed", because: "it is neither \"a b\" nor [\"a\", \"b\"]",
                        fix: "correct it")
                }
                let result = Array(left) + Array(right.dropFirst(prefix.count))
                guard let a = ids.find(left), let b = ids.find(right), let c = ids.find(result) else {
                    throw part.failure(
                        "merge \(rank) names a token that is not in the vocabulary",
                        because: "it joins '\(text(left))' and '\(text(right))' to '\(text(result))'",
                        fix: "add the missing token to \"vocab\" or drop the merge")
                }
                merges.append((a, b, c))
            }
            return merges
        }

        private func sides(of item: JSON) -> (ArraySlice<UInt8>, ArraySlice<UInt8>)? {
            if let pair = item.array {
                guard pair.count == 2, let a = pair[0].string, let b = pair[1].string else { return nil }
                return (Array(a.utf8)[...], Array(b.utf8)[...])
            }
            guard let text = item.string else { return nil }
            let sides = Array(text.utf8).split(separator: 0x20, omittingEmptySubsequences: false)
            return sides.count == 2 ? (sides[0], sides[1]) : nil
        }

        private func text(_ bytes: some Sequence<UInt8>) -> String { String(decoding: Array(bytes), as: UTF8.self) }
    }
}
