//! `sync`: has a running gateway bring what only its disk has to the cloud, and waits for it if asked.

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, print, words};

/// How often the gateway is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
#[command(after_help = "\
The gateway does this by itself; the command is for those who do not want to wait. What was parked or cancelled is tried \
again too.

Exit codes: 1 if recordings are parked at the end (with --wait) or would be tried again (with --dry-run).

Example: recording-gateway sync --now --wait")]
pub(super) struct SyncArgs {
    /// Also what failed and waits for its next try
    #[arg(long)]
    now: bool,
    /// Print what would be sent and send nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Only this session
    #[arg(long, short, value_parser = words::session)]
    session: Option<String>,
    /// Wait until nothing is left to be sent
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &SyncArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    if args.dry_run {
        let plan = ask(&gateway, args, true).await?;
        if args.gateway.json {
            print::json(&plan)?;
        } else {
            let (count, bytes, parked) = figures(&plan);
            print::line(format_args!(
                "{count} recordings ({}) wait for the cloud; {parked} are parked and would be tried again",
                print::size(bytes)
            ))?;
        }
        return Ok(if figures(&plan).2 == 0 { Outcome::Fine } else { Outcome::Failures });
    }
    let mut job = ask(&gateway, args, false).await?;
    let id = job["id"].as_str().unwrap_or_default().to_owned();
    if !args.wait {
        if args.gateway.json {
            print::json(&job)?;
        } else {
            let total = job["children"]["total"].as_u64().unwrap_or(0);
            print::line(format_args!("{total} recordings are on their way, as parts of job {id}"))?;
        }
        return Ok(Outcome::Fine);
    }

    let bar = bar(args);
    let plan = loop {
        job = gateway.send(gateway.request(Method::GET, gateway.path(&["jobs", &id])?)).await?;
        let part = |name: &str| job["children"][name].as_u64().unwrap_or(0);
        bar.set_length(part("total"));
        bar.set_position(part("done") + part("parked") + part("cancelled"));
        // What other jobs have as their parts counts too: whoever waits wants nothing left here.
        let plan = ask(&gateway, args, true).await?;
        let (waiting, bytes, _) = figures(&plan);
        bar.set_message(format!("{waiting} waiting ({})", print::size(bytes)));
        if waiting == 0 && job["state"] != "running" {
            break plan;
        }
        tokio::time::sleep(ASK_EVERY).await;
    };
    bar.finish_and_clear();
    let parked = figures(&plan).2;
    if args.gateway.json {
        print::json(&json!({"job": job, "parked": parked}))?;
    } else {
        let done = job["children"]["done"].as_u64().unwrap_or(0);
        print::line(format_args!("{done} recordings reached the cloud; {parked} are parked"))?;
        if parked > 0 {
            print::complain("`recording-gateway jobs ls --state parked` says why");
        }
    }
    Ok(if parked == 0 { Outcome::Fine } else { Outcome::Failures })
}

async fn ask(gateway: &Gateway, args: &SyncArgs, dry_run: bool) -> anyhow::Result<Value> {
    let wanted = json!({"session_id": args.session, "dry_run": dry_run, "now": args.now});
    let request = gateway.request(Method::POST, gateway.path(&["sync"])?).json(&wanted);
    Ok(gateway.send(request).await?)
}

/// Recordings that wait, their bytes, and how many are parked.
fn figures(plan: &Value) -> (u64, u64, u64) {
    let figure = |name: &str| plan[name].as_u64().unwrap_or(0);
    (figure("count"), figure("bytes"), figure("parked"))
}

/// On stderr; indicatif shows none where that is no terminal.
fn bar(args: &SyncArgs) -> ProgressBar {
    if args.gateway.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} recordings {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
