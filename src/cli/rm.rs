//! `rm`: deletes a recording or a whole session, from both stores.

use std::io::{self, IsTerminal as _};

use clap::Args;
use reqwest::Method;

use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, Usage, print, words};

#[derive(Args, Debug)]
pub(super) struct RmArgs {
    /// Session
    #[arg(value_parser = words::session)]
    session: String,
    /// Recording to delete; without it, the whole session
    #[arg(value_parser = words::filename)]
    filename: Option<String>,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &RmArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    let mut parts = vec![args.session.as_str()];
    parts.extend(args.filename.as_deref());
    let url = gateway.address(&parts)?;
    let what = match &args.filename {
        Some(filename) => format!("{}/{filename}", args.session),
        None => format!("session {} with all its recordings", args.session),
    };
    if !args.yes && !confirmed(&what)? {
        print::complain("nothing was deleted");
        return Ok(Outcome::Failures);
    }
    let answer = gateway.send(gateway.request(Method::DELETE, url)).await?;
    if args.gateway.json {
        print::json(&answer)?;
    } else {
        print::line(print::visible(answer["message"].as_str().unwrap_or(&format!("Deleted {what}"))))?;
    }
    Ok(Outcome::Fine)
}

fn confirmed(what: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Usage("nobody is there to ask: say --yes to delete".into()).into());
    }
    print::complain(format_args!(
        "delete {} from the cloud and this gateway's disk, for good? [y/N]",
        print::visible(what)
    ));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
