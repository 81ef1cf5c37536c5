//! `verify`: lets a running gateway compare its catalogue, the bucket and its disk, and shows what differs.
//!
//! Lines are passed on as the gateway gave them; `--json` loses nothing that this version does not know.

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value};

use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, print, words};

/// A line is shorter; something else is no gateway.
const LONGEST_LINE: usize = 1 << 20;

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// Only this session
    #[arg(long, value_name = "SESSION", value_parser = words::session)]
    session: Option<String>,
    /// Read every copy and compare its SHA-256
    #[arg(long)]
    read: bool,
    /// Do what can be done without losing anything; without it, nothing is changed
    #[arg(long)]
    repair: bool,
    /// Forget recordings whose bytes no store has
    #[arg(long)]
    forget_lost: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &VerifyArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    let mut said = Map::new();
    said.extend(args.session.as_ref().map(|session| ("session_id".to_owned(), session.as_str().into())));
    said.extend(args.read.then(|| ("digests".to_owned(), "read".into())));
    said.insert("repair".into(), args.repair.into());
    said.insert("forget_lost".into(), args.forget_lost.into());
    let request = gateway.request(Method::POST, gateway.top_address("verify")).json(&said);
    let mut response = gateway.open(request).await?;

    let bar = bar();
    let (mut rest, mut findings, mut last) = (Vec::new(), Vec::new(), Value::Null);
    while let Some(bytes) = response.chunk().await? {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line)?;
            if args.gateway.json {
                print::line(&line)?;
            }
            match line["type"].as_str() {
                Some("progress") => show(&bar, &line),
                Some("finding") if !args.gateway.json => findings.push(row(&line)),
                Some("summary" | "failed") => last = line,
                _ => {}
            }
        }
        anyhow::ensure!(rest.len() <= LONGEST_LINE, "the answer is no list of findings");
    }
    bar.finish_and_clear();
    if last["type"] == "failed" {
        anyhow::bail!(
            "the gateway could not go on: {}",
            last["detail"].as_str().unwrap_or("no reason given")
        );
    }
    anyhow::ensure!(last["type"] == "summary", "the gateway stopped before it was done; verify again");
    if !args.gateway.json {
        if !findings.is_empty() {
            print::table(["WORD", "WHERE", "NAME", "DETAIL", "OUTCOME"], &findings)?;
        }
        print::line(sentence(&last))?;
    }
    if last["degraded"] == true {
        let why = print::visible(last["unavailable"].as_str().unwrap_or_default());
        print::complain(format_args!("the cloud did not answer every question: {why}"));
    }
    let clean = last["remaining"] == 0 && last["degraded"] == false;
    Ok(if clean { Outcome::Fine } else { Outcome::Failures })
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} sessions {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(bar: &ProgressBar, line: &Value) {
    bar.set_length(line["sessions_total"].as_u64().unwrap_or(0));
    bar.set_position(line["sessions"].as_u64().unwrap_or(0));
    let read = print::size(line["bytes_read"].as_u64().unwrap_or(0));
    bar.set_message(format!("{} recordings, {read} read", line["recordings"]));
}

fn row(line: &Value) -> [String; 5] {
    let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
    let name = match (line["session_id"].as_str(), line["filename"].as_str()) {
        (Some(session), Some(filename)) => format!("{session}/{filename}"),
        (session, filename) => session.or(filename).unwrap_or("-").to_owned(),
    };
    let outcome = match (line["treated"].as_str(), line["because"].as_str()) {
        (Some("repaired"), Some(how)) => format!("repaired: {how}"),
        (Some("found"), _) => "--repair puts it right".to_owned(),
        (_, Some(why)) => why.to_owned(),
        _ => "-".to_owned(),
    };
    [text("word"), text("store"), name, text("detail"), outcome]
}

fn sentence(summary: &Value) -> String {
    let words = ["missing", "different", "unknown", "orphaned"];
    let found: Vec<String> = words.iter().map(|word| format!("{} {word}", summary["found"][word])).collect();
    let mut sentence = format!(
        "{} recordings in {} sessions: {}; {} repaired, {} remaining",
        summary["recordings"],
        summary["sessions"],
        found.join(", "),
        summary["repaired"],
        summary["remaining"]
    );
    for (field, words) in [
        ("lost", "lost"),
        ("not_checkable", "copies could not be looked at from here"),
        ("in_motion", "changed whenever they were looked at"),
    ] {
        if summary[field].as_u64().is_some_and(|count| count > 0) {
            sentence += &format!("; {} {words}", summary[field]);
        }
    }
    sentence
}
