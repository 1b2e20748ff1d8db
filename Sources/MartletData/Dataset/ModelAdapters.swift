package import MartletCore

extension Tokenizer: TextEncoder {}
