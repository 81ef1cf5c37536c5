//! `catalogue copy`: moves the embedded catalogue to PostgreSQL and compares what is there afterwards.
//!
//! The gateway must not run meanwhile; `app` holds its directory.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Outcome, Usage, print};
use crate::app;
use crate::config::Config;

/// What can be done with the catalogue.
#[derive(Subcommand, Debug)]
pub(super) enum CatalogueCommand {
    /// Move the embedded catalogue of the recordings' folder to PostgreSQL; the gateway must be stopped
    Copy(CopyArgs),
}

#[derive(Args, Debug)]
pub(super) struct CopyArgs {
    /// Database to copy to, like postgres://user:password@host:5432/database; DATABASE_URL if absent
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn copy(args: &CopyArgs, config: &Config) -> anyhow::Result<Outcome> {
    let given = args.to.as_deref().or(config.catalog.url.as_ref().map(|url| url.expose()));
    let Some(to) = given.and_then(|text| url::Url::parse(text).ok()).filter(is_postgres) else {
        let text = "say where to copy to: --to postgres://user:password@host:5432/database, or DATABASE_URL";
        return Err(Usage(text.into()).into());
    };
    let tables = app::copy_catalogue(config, &to).await?;
    let equal = tables.iter().all(|table| table.source == table.target);
    if args.json {
        print::json(&json!({ "equal": equal, "tables": tables }))?;
    } else {
        let rows: Vec<_> = tables
            .iter()
            .map(|table| {
                let verdict = if table.source == table.target { "equal" } else { "DIFFERENT" };
                [table.table.clone(), table.source.to_string(), table.target.to_string(), verdict.to_owned()]
            })
            .collect();
        print::table(["TABLE", "EMBEDDED", "POSTGRESQL", ""], &rows)?;
        if equal {
            print::line(
                "The gateway runs on it with DATABASE_URL; the embedded catalogue no longer starts.",
            )?;
        } else {
            print::complain(
                "the counts differ: gateways have run on PostgreSQL since, or the copy is not whole",
            );
        }
    }
    Ok(if equal { Outcome::Fine } else { Outcome::Failures })
}

fn is_postgres(url: &url::Url) -> bool {
    matches!(url.scheme(), "postgres" | "postgresql") && url.has_host()
}
