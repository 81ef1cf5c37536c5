//! `audit`: who changed what, as a running gateway remembers it.

use clap::Args;
use serde_json::json;

use super::client::{Gateway, GatewayArgs};
use super::ls::{some_rows, text};
use super::{Outcome, Settings, print, words};

#[derive(Args, Debug)]
pub(super) struct AuditArgs {
    /// Only this session
    #[arg(long, short, value_parser = words::session)]
    session: Option<String>,
    /// Only recordings of this name
    #[arg(long, value_name = "NAME")]
    filename: Option<String>,
    /// Only where this was done
    #[arg(long, value_parser = words::action())]
    action: Option<String>,
    /// anonymous for clients, gateway for what it did by itself
    #[arg(long)]
    actor: Option<String>,
    /// Not before this time, like 2024-12-01T00:00:00Z
    #[arg(long, value_name = "TIME", value_parser = words::moment)]
    since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = words::moment)]
    until: Option<String>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &AuditArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    let wanted = [
        ("session_id", &args.session),
        ("filename", &args.filename),
        ("action", &args.action),
        ("actor", &args.actor),
        ("since", &args.since),
        ("until", &args.until),
    ];
    let rows = some_rows(&gateway, gateway.path(&["audit"])?, &wanted, "changes", args.limit).await?;
    if args.gateway.json {
        print::json(&json!({"changes": rows}))?;
        return Ok(Outcome::Fine);
    }
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let what = match row["filename"].as_str() {
                Some(filename) => format!("{}/{filename}", text(row, "session_id")),
                None => text(row, "session_id"),
            };
            let columns = ["time", "action", "actor", "request_id"].map(|name| text(row, name));
            let [time, action, actor, request] = columns;
            [time, action, actor, request, what, text(row, "detail")]
        })
        .collect();
    print::table(["TIME", "ACTION", "ACTOR", "REQUEST", "WHAT", "DETAIL"], &rows)?;
    Ok(Outcome::Fine)
}
