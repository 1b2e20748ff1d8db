#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// Where the door prints.
enum Terminal {
    static let isInteractive = isatty(STDOUT_FILENO) == 1
    static let errorIsInteractive = isatty(STDERR_FILENO) == 1
    static let inputIsInteractive = isatty(STDIN_FILENO) == 1
    /// Colours only for people (https://no-color.org).
    static let hasColor = isInteractive && getenv("NO_COLOR") == nil

    /// A line of result, at once.
    static func say(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }
    /// A piece of a line of result, at once.
    static func show(_ text: String) { write(text, to: STDOUT_FILENO) }
    /// A line of what is not the result.
    static func complain(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    /// Replaces the last line of stderr that was written by this function.
    static func status(_ text: String) {
        guard errorIsInteractive else { return }
        let width = columnCount
        write("\r\u{1B}[K" + String(text.prefix(max(20, width - 1))), to: STDERR_FILENO)
    }

    /// Removes the status line.
    static func clearStatus() { if errorIsInteractive { write("\r\u{1B}[K", to: STDERR_FILENO) } }

    static func colored(_ text: String, _ code: Int) -> String { hasColor ? "\u{1B}[\(code)m\(text)\u{1B}[0m" : text }

    private static var columnCount: Int {
        var size = winsize()
        guard ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
        return Int(size.ws_col)
    }

    /// A reader that went away (`martlet ... | head`) ends the program quietly, as it does other programs.
    private static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { sysWrite(descriptor, $0) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return }
            bytes = bytes.dropFirst(count)
        }
    }
}

private func sysWrite(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
    write(descriptor, bytes.baseAddress, bytes.count)
}

/// Ends the program.
func leave(_ code: Int32) -> Never { exit(code) }
