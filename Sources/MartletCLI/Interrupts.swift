import Martlet

#if canImport(Glibc)
import Glibc
#elseif canImport(Darwin)
import Darwin
#endif

/// Turned on by the first Ctrl-C (or SIGTERM); the second ends the program at once.
enum Interrupts {
    static let stop = StopSwitch()

    /// From here on Ctrl-C asks instead of ending the program.
    static func watch() {
        // Made before a signal can come: a handler must not initialise anything.
        _ = stop.isOn
        for number in [SIGINT, SIGTERM] { signal(number) { _ in Interrupts.receive() } }
    }

    private static func receive() {
        guard !stop.isOn else { _exit(130) }
        stop.stop()
        let text: StaticString = "\nstopping: the step is finished and saved first; Ctrl-C again leaves at once\n"
        _ = write(STDERR_FILENO, text.utf8Start, text.utf8CodeUnitCount)
    }
}
