//! The binary: everything it does is a command in `cli`.

fn main() -> std::process::ExitCode {
    recording_gateway::cli::main()
}
