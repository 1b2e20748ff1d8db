#if canImport(Glibc)
internal import Glibc
#elseif canImport(Darwin)
internal import Darwin
#endif

/// A wall-clock time, for templates that write the date (`strftime_now`).
package struct TemplateDate: Sendable, Equatable, CustomStringConvertible {
    package var year, month, day, hour, minute, second: Int

    /// Midnight, unless an hour is given; months and days count from 1.
    package init(year: Int, month: Int, day: Int, hour: Int = 0, minute: Int = 0, second: Int = 0) {
        (self.year, self.month, self.day) = (year, month, day)
        (self.hour, self.minute, self.second) = (hour, minute, second)
    }

    /// The local time now.
    package static func now() -> TemplateDate {
        var seconds = time(nil)
        var parts = tm()
        localtime_r(&seconds, &parts)
        return TemplateDate(
            year: Int(parts.tm_year) + 1900, month: Int(parts.tm_mon) + 1, day: Int(parts.tm_mday),
            hour: Int(parts.tm_hour), minute: Int(parts.tm_min), second: Int(parts.tm_sec))
    }

    /// "2026-03-01 09:05:00".
    package var description: String { formatted("%Y-%m-%d %H:%M:%S") }

    /// Reads a `description`.
    package init?(_ description: String) {
        let parts = description.split { !$0.isASCII || !$0.isNumber }.compactMap { Int($0) }
        guard parts.count == 6 else { return nil }
        self.init(
            year: parts[0], month: parts[1], day: parts[2], hour: parts[3], minute: parts[4], second: parts[5])
        guard self.description == description else { return nil }
    }

    /// Python's `datetime.strftime`, in English.
    func formatted(_ format: String) -> String {
        var parts = tm()
        parts.tm_year = CInt(clamping: year - 1900)
        parts.tm_mon = CInt(clamping: month - 1)
        parts.tm_mday = CInt(clamping: day)
        parts.tm_hour = CInt(clamping: hour)
        parts.tm_min = CInt(clamping: minute)
        parts.tm_sec = CInt(clamping: second)
        parts.tm_isdst = -1
        timegm(&parts)
        var out = ""
        var scalars = format.unicodeScalars[...]
        while let scalar = scalars.popFirst() {
            guard scalar == "%" else {
                out.unicodeScalars.append(scalar)
                continue
            }
            var directive = "%"
            if let flag = scalars.first, "-_0^#".unicodeScalars.contains(flag) {
                directive.unicodeScalars.append(flag)
                scalars.removeFirst()
            }
            guard let letter = scalars.popFirst() else { return out + directive }
            directive.unicodeScalars.append(letter)
            switch letter {
            case "f": out += "000000"
            case "z", "Z": continue
            case _ where letter.isASCII && letter.properties.isAlphabetic && letter != "E" && letter != "O":
                out += expand(directive, &parts)
            case "%": out += "%"
            default: out += directive
            }
        }
        return out
    }

    private func expand(_ directive: String, _ parts: inout tm) -> String {
        var buffer = [CChar](repeating: 0, count: 128)
        let count = strftime(&buffer, buffer.count, directive, &parts)
        return String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}
