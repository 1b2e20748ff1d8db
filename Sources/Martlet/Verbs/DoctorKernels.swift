internal import MartletCUDA
public import MartletCore

extension Doctor {
    /// Compiles every GPU kernel for every architecture, a check each. Needs NVRTC, which it throws the lack of, but no GPU.
    public static func examineKernels(progress: (Check) -> Void = { _ in }) throws(MartletError) -> Doctor {
        var doctor = Doctor(checks: []), watch = Stopwatch()
        try KernelCatalog.compile { outcome in
            let check = check(outcome, seconds: watch.seconds)
            doctor.checks.append(check)
            progress(check)
            watch = Stopwatch()
        }
        return doctor
    }

    private static func check(_ outcome: KernelCatalog.Outcome, seconds: Double) -> Check {
        let failures = outcome.failures
        let summary =
            "\(outcome.count) by \(outcome.compiler) in \(fixed(seconds, 1)) s, \(failures.count) failures"
        // The compiler's words on the first few.
        let words = failures.prefix(3).map { "       \($0.location ?? $0.problem)\n\($0.reason ?? "")" }
        return Check(
            name: "kernels for \(outcome.architecture)", isSound: failures.isEmpty,
            detail: ([summary] + words).joined(separator: "\n"),
            advice: failures.isEmpty
                ? nil : "NVRTC 12.8 is the oldest that knows every architecture; with that, report the words above")
    }
}
