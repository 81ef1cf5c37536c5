//! The command line: what can be typed, which settings it gives, and how a command ends.
//!
//! One file a command; each gets typed arguments and prints text or JSON. Exit codes: 0 fine, 1 failures or
//! differences, 2 usage (a wrong configuration is one). Never any work of the gateway itself in here.

mod audit;
mod catalogue;
pub mod check;
mod client;
mod config;
mod form;
mod jobs;
mod ls;
mod migrate;
mod print;
mod rm;
mod sync;
mod upload;
mod verify;
mod words;

use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Config, ConfigErrors, Flag, LoadInput, Loaded};
use crate::{app, http};

/// What can be typed.
#[derive(Parser, Debug)]
#[command(
    name = "recording-gateway",
    version,
    about = "Takes recordings and gets them into Supabase Storage, or keeps them on disk until it can",
    after_help = "Without a command it serves. Exit codes: 0 fine, 1 failures or differences, 2 usage or configuration."
)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Flags that every command takes, because every command reads the same configuration.
#[derive(Args, Debug)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// Configuration file (TOML); beats config/default.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, like uploads.max_bytes=5GiB; repeatable
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Address of the gateway (server.host)
    #[arg(long, global = true)]
    host: Option<String>,
    /// Port of the gateway (server.port); 0 takes any free one
    #[arg(long, global = true)]
    port: Option<String>,
    /// Folder for recordings kept on this machine (storage.local_dir)
    #[arg(long, global = true, value_name = "DIR")]
    local_dir: Option<String>,
    /// What is logged: off, error, warn, info, debug or trace (log.level)
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the gateway
    Serve,
    /// Say whether keys, bucket, disk, catalogue and port are right
    Check(check::CheckArgs),
    /// Send files to a running gateway
    Upload(upload::UploadArgs),
    /// Load a directory tree of old recordings through a running gateway
    Migrate(migrate::MigrateArgs),
    /// Bring what only the gateway's disk has to the cloud
    Sync(sync::SyncArgs),
    /// Look at jobs, try them again, stop them
    Jobs(jobs::JobsArgs),
    /// List who changed what
    Audit(audit::AuditArgs),
    /// List sessions, or the recordings of one
    Ls(ls::LsArgs),
    /// Delete a recording, or a whole session
    Rm(rm::RmArgs),
    /// Compare catalogue, bucket and disk, and repair what can be repaired
    Verify(verify::VerifyArgs),
    /// What the gateway remembers
    #[command(subcommand, alias = "catalog")]
    Catalogue(catalogue::CatalogueCommand),
    /// The configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the description of the HTTP interface (OpenAPI)
    Openapi,
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_parser = PossibleValuesParser::new(["bash", "zsh", "fish"]).try_map(|name| name.parse::<Shell>()))]
        shell: Shell,
    },
}

/// How a command that ran to its end went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    /// Something failed or differs, and it was told.
    Failures,
}

/// A mistake in what was typed that clap cannot see. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command of this process.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // A log when there is one; the terminal of whoever typed the command gets a sentence, not a stack.
        tracing::error!(panic = %panic, "internal error");
        let place = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        print::complain(format_args!("internal error{place}; please report it"));
    }));
    let cli = Cli::parse();
    let ended = catch_unwind(AssertUnwindSafe(|| run(cli)));
    match ended {
        Ok(Ok(Outcome::Fine)) => ExitCode::SUCCESS,
        Ok(Ok(Outcome::Failures)) | Err(_) => ExitCode::from(1),
        Ok(Err(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            print::complain(format_args!("{error:#}"));
            let usage = error.is::<ConfigErrors>() || error.is::<Usage>();
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let settings = cli.settings;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let loaded = settings.load()?;
            // Everything worth waiting for is waited for in there. What still runs then is left where it is and goes with
            // the process, as in a kill: dropping it would remove the files it holds, which the next start needs.
            let runtime =
                ManuallyDrop::new(tokio::runtime::Builder::new_multi_thread().enable_all().build()?);
            runtime.block_on(app::serve(loaded)).map(|()| Outcome::Fine)
        }
        Command::Check(args) => {
            let loaded = settings.load()?;
            one_thread(async {
                if args.running {
                    return check::run_running(&args, &loaded).await;
                }
                check::run(&args, &loaded, app::check(&loaded.config).await).await
            })
        }
        Command::Upload(args) => one_thread(upload::run(&args, &settings)),
        Command::Migrate(args) => one_thread(migrate::run(&args, &settings)),
        Command::Sync(args) => one_thread(sync::run(&args, &settings)),
        Command::Jobs(args) => one_thread(jobs::run(&args, &settings)),
        Command::Audit(args) => one_thread(audit::run(&args, &settings)),
        Command::Ls(args) => one_thread(ls::run(&args, &settings)),
        Command::Rm(args) => one_thread(rm::run(&args, &settings)),
        Command::Verify(args) => one_thread(verify::run(&args, &settings)),
        Command::Catalogue(catalogue::CatalogueCommand::Copy(args)) => {
            let loaded = settings.load()?;
            one_thread(catalogue::copy(&args, &loaded.config))
        }
        Command::Config(config::ConfigCommand::Show(args)) => config::show(&args, &settings.load()?),
        Command::Openapi => print::text(&http::openapi::document()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "recording-gateway", &mut script);
            print::text(&String::from_utf8_lossy(&script))
        }
    }
}

impl Settings {
    fn load(&self) -> Result<Loaded, ConfigErrors> {
        Config::load(&LoadInput::of_process(self.config.clone(), self.flags()))
    }

    /// The flags as the highest layer of the configuration. The named ones beat `--set`.
    fn flags(&self) -> Vec<Flag> {
        let set = self.set.iter().map(|(key, value)| (format!("--set {key}"), key.as_str(), value.clone()));
        let named = [
            ("--host", "server.host", &self.host),
            ("--port", "server.port", &self.port),
            ("--local-dir", "storage.local_dir", &self.local_dir),
            ("--log-level", "log.level", &self.log_level),
        ];
        let named =
            named.into_iter().filter_map(|(name, key, value)| Some((name.to_owned(), key, value.clone()?)));
        set.chain(named).map(|(name, key, value)| Flag { name, key: key.to_owned(), value }).collect()
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("must be SECTION.KEY=VALUE, like server.port=9000".into()),
    }
}

/// Commands that ask a gateway or the disk a few questions need no more than this.
fn one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A read from stdin that was refused half-way may still be waiting for bytes: nobody wants them any more.
    runtime.shutdown_background();
    done
}

/// Whoever read our output has seen enough (`ls | head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn named_flags_beat_set() {
        let cli = Cli::parse_from(["recording-gateway", "check", "--port", "1", "--set", "server.port=2"]);
        let flags = cli.settings.flags();
        let last = flags.last().unwrap();
        assert_eq!(
            (last.name.as_str(), last.key.as_str(), last.value.as_str()),
            ("--port", "server.port", "1")
        );
        assert_eq!(flags[0].name, "--set server.port");
    }
}
