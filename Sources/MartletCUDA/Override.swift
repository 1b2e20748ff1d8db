import MartletCore

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// The way that an environment variable names, nil where it names none or `auto`.
func override<Way: RawRepresentable & CaseIterable>(
    _ variable: String, _ what: String, named name: String?, of ways: Way.Type
) throws(MartletError) -> Way? where Way.RawValue == String {
    guard let name, !name.isEmpty, name != "auto" else { return nil }
    if let way = Way(rawValue: name) { return way }
    let known = Way.allCases.map(\.rawValue)
    throw MartletError(
        "there is no \(what) '\(name)'", in: variable, because: "there are auto, " + known.joined(separator: ", "),
        fix: closestMatch(to: name, among: known).map { "write '\($0)'" } ?? "unset it")
}

/// What an environment variable switches on or off.
func isOn(_ variable: String, usually: Bool) throws(MartletError) -> Bool {
    try isOn(variable, named: environment(variable), usually: usually)
}
func isOn(_ variable: String, named name: String?, usually: Bool) throws(MartletError) -> Bool {
    try override(variable, "setting", named: name, of: Switch.self).map { $0 == .on } ?? usually
}

private enum Switch: String, CaseIterable { case on, off }

/// The value of an environment variable.
func environment(_ variable: String) -> String? { getenv(variable).map { String(cString: $0) } }
