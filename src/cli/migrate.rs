//! `migrate`: loads a directory tree of old recordings through a running gateway. Plan, load, compare, report.
//!
//! Nothing is remembered between runs: what the gateway lists decides what is still to be sent, so a run that was
//! killed anywhere is simply started again. Nothing below the directory is ever changed.

mod compare;
mod known;
mod load;
mod patience;
mod plan;
mod report;

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use indicatif::ProgressBar;
use reqwest::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::load::Loader;
use self::patience::{Patience, Trouble};
use self::plan::{Plan, Rules};
use self::report::{Entry, LastLine, Outcome as Became, Report, Totals};
use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, Usage, print};
use crate::domain::media::TypeRules;
use crate::domain::{RecordingType, SessionId};

#[derive(Args, Debug)]
#[command(after_help = "\
The first directory below DIR is the session, the rest of the path goes with the recording as its original name. What a \
session id may not have becomes \"-\". Files go oldest first, so that the newest of a session stays its newest.

A run that was stopped or killed goes on when the same command is given again: what the gateway has already, by size \
and SHA-256, is skipped.

Example: recording-gateway migrate /mnt/old --dry-run && recording-gateway migrate /mnt/old")]
pub(super) struct MigrateArgs {
    /// Directory with the recordings
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Put all of them into this session
    #[arg(long, short)]
    session: Option<String>,
    /// Kind of recording: 1 to 32 of a-z 0-9 _ -
    #[arg(long, short = 't', visible_alias = "type", value_name = "TYPE", default_value = "session")]
    recording_type: String,
    /// Take only paths that end in this, like .webm; repeatable
    #[arg(long, value_name = "SUFFIX")]
    include: Vec<String>,
    /// Leave out paths that end in this, like .txt; repeatable
    #[arg(long, value_name = "SUFFIX")]
    exclude: Vec<String>,
    /// Print what would go where and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Sessions that are loaded at once
    #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Longest wait for a gateway that is away, busy or full
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Where to write what became of each file (JSON lines); default: migrate-report-TIME.jsonl here
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    report: Option<PathBuf>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &MigrateArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let usage = |error: crate::domain::NameError| Usage(error.to_string());
    let session = args.session.as_deref().map(SessionId::parse).transpose().map_err(usage)?;
    let recording_type = RecordingType::parse(&args.recording_type).map_err(usage)?;
    if !args.dir.is_dir() {
        return Err(Usage(format!("{} is no directory", args.dir.display())).into());
    }
    let gateway = Gateway::find(&args.gateway, settings)?;
    let rules = rules(args, session, &gateway).await?;
    let plan =
        Plan::of_tree(&args.dir, &rules).with_context(|| format!("{} cannot be read", args.dir.display()))?;
    if args.dry_run {
        return dry_run(args, &plan);
    }

    let report = Report::create(args.report.as_deref())
        .context("the report cannot be written; name another place with --report")?;
    let bar = if args.gateway.json { ProgressBar::hidden() } else { print::bytes_bar(plan.bytes()) };
    let (stop, abandon) = (CancellationToken::new(), CancellationToken::new());
    let job = begin_job(&gateway).await;
    let loader = Loader {
        gateway: &gateway,
        root: &args.dir,
        recording_type: recording_type.as_str(),
        jobs: args.jobs as usize,
        job: RefCell::new(job.clone()),
        patience: Patience::new(args.wait, stop.clone(), bar.clone()),
    };
    let mut entries: Vec<Entry> = plan.left_out.iter().map(Entry::from).collect();
    entries.iter().try_for_each(|entry| tell(args, &bar, entry))?;
    let loaded = tokio::select! {
        loaded = loader.run(&plan, &abandon, |entry| tell(args, &bar, entry)) => loaded?,
        ended = signals(&stop, &abandon, &bar) => return Err(ended),
    };
    let stopped = stop.is_cancelled();
    let (mut sent, sessions) = (loaded.entries, loaded.sessions);
    // Whoever asked to stop, or has no gateway, gets no comparison; the next run makes it.
    let compared = if stopped {
        None
    } else {
        let compared = tokio::select! {
            compared = compare::compare(&gateway, &loader.patience, sessions, &mut sent) => compared,
            ended = signals(&stop, &abandon, &bar) => return Err(ended),
        };
        match compared {
            Ok(compared) => Some(compared),
            Err(Trouble::Stopped) => None,
            Err(Trouble::File(why) | Trouble::Away(why)) => {
                bar.suspend(|| {
                    print::complain(format_args!("the gateway's listing could not be compared: {why}"))
                });
                None
            }
        }
    };
    bar.finish_and_clear();
    if let Some(compared) = &compared {
        compared.different.iter().try_for_each(|place| tell(args, &bar, &sent[*place]))?;
    }
    entries.append(&mut sent);
    let mut totals = Totals::of(&plan, &entries);
    if let Some(compared) = compared {
        (totals.compared, totals.listed) = (Some(compared.same), Some(compared.listed));
        totals.degraded = compared.degraded;
    }
    totals.job = job;
    report.write(&entries, &totals).context("the report cannot be written")?;
    tell_totals(args, &totals, &report)?;
    if let Some(why) = &loaded.away {
        print::complain(format_args!("given up: {why}. The same command goes on where this one stopped"));
    } else if stopped {
        print::complain("stopped. The same command goes on where this one stopped");
    }
    Ok(if totals.fine() && totals.compared.is_some() { Outcome::Fine } else { Outcome::Failures })
}

/// What the gateway takes, and what was asked for.
async fn rules(args: &MigrateArgs, session: Option<SessionId>, gateway: &Gateway) -> anyhow::Result<Rules> {
    let limits = gateway.send(gateway.request(Method::GET, gateway.top_address("config.json"))).await?;
    let types = limits["allowed_types"].as_array().into_iter().flatten();
    let types: Vec<String> = types.filter_map(|rule| rule.as_str().map(str::to_owned)).collect();
    let max_bytes = limits["max_bytes"].as_u64();
    let lower = |suffixes: &[String]| suffixes.iter().map(|suffix| suffix.to_lowercase()).collect();
    Ok(Rules {
        session,
        include: lower(&args.include),
        exclude: lower(&args.exclude),
        types: TypeRules::parse(&types)?,
        max_bytes: max_bytes
            .ok_or_else(|| anyhow!("the gateway does not tell its limits: is another program there?"))?,
    })
}

/// The job whose parts will be the syncs of what is loaded. Without one everything is loaded all the same.
async fn begin_job(gateway: &Gateway) -> Option<String> {
    let request = gateway.request(Method::POST, gateway.top_address("jobs"));
    match gateway.send(request.json(&serde_json::json!({"kind": "migration"}))).await {
        Ok(job) => job["id"].as_str().map(str::to_owned),
        Err(error) => {
            print::complain(format_args!("the gateway makes no job of this load: {error:#}"));
            None
        }
    }
}

fn dry_run(args: &MigrateArgs, plan: &Plan) -> anyhow::Result<Outcome> {
    let files = plan.files.iter().map(|file| Entry::of(file, Became::Planned, None));
    let entries: Vec<Entry> = plan.left_out.iter().map(Entry::from).chain(files).collect();
    let totals = Totals::of(plan, &entries);
    if args.gateway.json {
        for entry in &entries {
            print::line(serde_json::to_string(entry)?)?;
        }
        print::line(serde_json::to_string(&LastLine { totals: &totals })?)?;
    } else {
        let rows: Vec<_> = plan
            .files
            .iter()
            .map(|file| {
                let path = file.relative.to_string_lossy().into_owned();
                [file.session.clone(), print::size(file.size), file.content_type.clone(), path]
            })
            .collect();
        if !rows.is_empty() {
            print::table(["SESSION", "SIZE", "TYPE", "FILE"], &rows)?;
        }
        for out in &plan.left_out {
            let path = out.relative.to_string_lossy();
            print::line(print::visible(&format!("left out: {path} {}", out.reason)))?;
        }
        print::line(format_args!(
            "{} files ({}) would go into {} sessions; {} left out, {} of them for you to decide on",
            totals.files,
            print::size(totals.bytes),
            totals.sessions,
            totals.left_out,
            totals.to_decide
        ))?;
    }
    Ok(if totals.fine() { Outcome::Fine } else { Outcome::Failures })
}

/// One file's line: for scripts each, for people what they have to know.
fn tell(args: &MigrateArgs, bar: &ProgressBar, entry: &Entry) -> anyhow::Result<()> {
    let (word, told) = match entry.outcome {
        Became::Planned | Became::Loaded | Became::Skipped => return json_line(args, entry),
        Became::LeftOut => ("left out", entry.to_decide),
        Became::Failed => ("failed", true),
        Became::Different => ("different", true),
    };
    if told && !args.gateway.json {
        let reason = entry.reason.as_deref().unwrap_or_default();
        let line = print::visible(&format!("{word}: {} {reason}", entry.path));
        bar.suspend(|| print::complain(line));
    }
    json_line(args, entry)
}

fn json_line(args: &MigrateArgs, entry: &Entry) -> anyhow::Result<()> {
    if !args.gateway.json {
        return Ok(());
    }
    // Not the end of a pipe that nobody minds: somebody who reads no further must not take this for a whole migration.
    print::line(serde_json::to_string(entry)?).map_err(|error| anyhow!("nobody reads the output: {error}"))
}

fn tell_totals(args: &MigrateArgs, totals: &Totals, report: &Report) -> anyhow::Result<()> {
    if totals.degraded {
        print::complain(
            "the cloud could not be asked: what only it knows was not compared, and may be there twice now",
        );
    }
    if args.gateway.json {
        return Ok(print::line(serde_json::to_string(&LastLine { totals })?)?);
    }
    print::line(format_args!(
        "{} loaded ({}), {} skipped, {} left out ({} for you to decide on), {} failed, {} different",
        totals.loaded,
        print::size(totals.loaded_bytes),
        totals.skipped,
        totals.left_out,
        totals.to_decide,
        totals.failed,
        totals.different
    ))?;
    print::line(match (totals.compared, totals.listed) {
        (Some(same), Some(listed)) => format!(
            "compared with the gateway's listing: {same} of {} files have a recording with their size and SHA-256; \
             their {} sessions have {listed} recordings",
            totals.files, totals.sessions
        ),
        _ => "not compared with the gateway's listing".to_owned(),
    })?;
    if let Some(job) = &totals.job {
        print::line(format_args!(
            "job: {job} (`recording-gateway jobs show {job}` tells how far the cloud has it)"
        ))?;
    }
    Ok(print::line(format_args!("report: {}", report.path.display()))?)
}

/// The first ^C (or SIGTERM) lets what is being sent end, the second does not. Ends only if signals cannot be had.
async fn signals(stop: &CancellationToken, abandon: &CancellationToken, bar: &ProgressBar) -> anyhow::Error {
    let (mut interrupt, mut terminate) =
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(error), _) | (_, Err(error)) => return anyhow!("signals cannot be waited for: {error}"),
        };
    loop {
        tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        if stop.is_cancelled() {
            abandon.cancel();
        } else {
            stop.cancel();
            bar.suspend(|| {
                print::complain("stopping when the files being sent are there; once more stops at once")
            });
        }
    }
}
