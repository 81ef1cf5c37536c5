//! `jobs`: the jobs of a running gateway, to look at, to try again, to stop.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Gateway, GatewayArgs};
use super::ls::{some_rows, text};
use super::{Outcome, Settings, print, words};

#[derive(Args, Debug)]
pub(super) struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Subcommand, Debug)]
enum JobsCommand {
    /// List jobs, newest first
    Ls {
        /// Only those that are so
        #[arg(long, value_parser = words::job_state())]
        state: Option<String>,
        /// Only those that do this
        #[arg(long, value_parser = words::job_kind())]
        kind: Option<String>,
        /// Only about this session
        #[arg(long, short, value_parser = words::session)]
        session: Option<String>,
        /// Only the parts of this job
        #[arg(long, value_name = "ID")]
        parent: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Show one job
    Show(OneJob),
    /// Make a job due now, also a parked or cancelled one
    Retry(OneJob),
    /// Stop a sync that waits; a deletion cannot be stopped
    Cancel(OneJob),
}

#[derive(Args, Debug)]
struct OneJob {
    /// The job
    id: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &JobsArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    match &args.command {
        JobsCommand::Ls { state, kind, session, parent, limit, gateway } => {
            let wanted = [("state", state), ("kind", kind), ("session_id", session), ("parent", parent)];
            let asked = Gateway::find(gateway, settings)?;
            let rows = some_rows(&asked, asked.path(&["jobs"])?, &wanted, "jobs", *limit).await?;
            list(&rows, gateway.json)
        }
        JobsCommand::Show(one) => ask(one, settings, Method::GET, None).await,
        JobsCommand::Retry(one) => ask(one, settings, Method::POST, Some("retry")).await,
        JobsCommand::Cancel(one) => ask(one, settings, Method::POST, Some("cancel")).await,
    }
}

fn list(rows: &[Value], as_json: bool) -> anyhow::Result<Outcome> {
    if as_json {
        print::json(&json!({"jobs": rows}))?;
        return Ok(Outcome::Fine);
    }
    let rows: Vec<_> = rows
        .iter()
        .map(|job| {
            let what = match (job["session_id"].as_str(), job["filename"].as_str()) {
                (Some(session), Some(filename)) => format!("{session}/{filename}"),
                (Some(session), None) => session.to_owned(),
                _ => "-".to_owned(),
            };
            [
                text(job, "id"),
                text(job, "kind"),
                text(job, "state"),
                tries(job),
                what,
                text(job, "last_error"),
            ]
        })
        .collect();
    print::table(["ID", "KIND", "STATE", "TRIES", "WHAT", "WHY"], &rows)?;
    Ok(Outcome::Fine)
}

/// How often it was tried, or how far its parts are.
fn tries(job: &Value) -> String {
    let part = |name: &str| job["children"][name].as_u64();
    match (part("done"), part("total")) {
        (Some(done), Some(total)) => format!("{done}/{total}"),
        _ => job["attempts"].to_string(),
    }
}

async fn ask(
    one: &OneJob,
    settings: &Settings,
    method: Method,
    verb: Option<&str>,
) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&one.gateway, settings)?;
    let parts: Vec<&str> = ["jobs", &one.id].into_iter().chain(verb).collect();
    let job = gateway.send(gateway.request(method, gateway.path(&parts)?)).await?;
    if one.gateway.json {
        print::json(&job)?;
        return Ok(Outcome::Fine);
    }
    for (name, value) in job.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        print::line(print::visible(&format!("{name}: {value}")))?;
    }
    Ok(Outcome::Fine)
}
