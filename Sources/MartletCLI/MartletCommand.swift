import ArgumentParser
import Martlet

/// The door: parses, calls the library, prints. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.
@main
struct MartletCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "martlet",
        abstract: "Fine-tune mixture-of-experts language models.",
        discussion: """
            A first run, on any machine:

              martlet doctor                                   can this machine train?
              martlet plan recipe.yaml                         what will it need?
              martlet train recipe.yaml                        train, export, check
              martlet generate MODEL --adapter output/adapter --chat "Hello"

            'martlet recipe' lists every key of a recipe.
            """,
        version: martletVersion,
        subcommands: [
            TrainCommand.self, PlanCommand.self,
            EvalCommand.self, GenerateCommand.self, MergeCommand.self,
            ExportAdapterCommand.self, InspectCommand.self, LogitsCommand.self, InitCommand.self, BenchCommand.self,
            DoctorCommand.self, RecipeCommand.self,
        ])

    static func main() {
        do {
            var command = try parseAsRoot()
            try command.run()
        } catch {
            end(after: error)
        }
    }

    private static func end(after error: any Error) -> Never {
        if let code = error as? ExitCode { leave(code.rawValue) }
        if error is MartletError {
            Terminal.complain("\(error)")
            leave(1)
        }
        let isHelp = exitCode(for: error) == .success
        let message = fullMessage(for: error)
        if isHelp { Terminal.say(message) } else { Terminal.complain(message) }
        leave(isHelp ? 0 : 2)
    }
}

/// `martlet recipe`: the keys of a recipe.
struct RecipeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "recipe", abstract: "List every key of a recipe, with its default and meaning.",
        discussion: """
            A recipe is a YAML file:

              model: /models/Qwen3-30B-A3B
              dataset: [data/train.jsonl]
              lora_r: 16
              output_dir: runs/first

            With a file, prints the recipe as a run would use it.
            """)

    @Argument(help: "A recipe to print with all its defaults.") var recipe: String?
    @Option(name: .customLong("set"), help: "Override a key: key=value. May be repeated.") var overrides: [String] = []

    func run() throws {
        guard let recipe else { return Terminal.say(Recipe.help) }
        Terminal.say(try Recipe(contentsOf: recipe, overrides: overrides).yaml)
    }
}
