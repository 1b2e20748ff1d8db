// The public library: a recipe is planned, trained, evaluated, talked to, merged and inspected from here.
// Errors are `MartletError`s, which live in MartletCore: whoever imports Martlet sees them too.
@_exported public import MartletCore

/// The version of this library and of the `martlet` command.
public let martletVersion = "0.1.0"
