//! `config show`: every setting, its value and where it came from.
//!
//! Secrets arrive here already hidden; nothing in here may read [`crate::config::Config`] itself.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Outcome, print};
use crate::config::Loaded;

#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Print every setting, its value and where it came from; secrets hidden
    Show(ShowArgs),
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn show(args: &ShowArgs, loaded: &Loaded) -> anyhow::Result<Outcome> {
    for warning in &loaded.warnings {
        print::complain(format_args!("warning: {warning}"));
    }
    if args.json {
        let values: Vec<_> = loaded
            .values
            .iter()
            .map(|value| json!({"key": value.key, "value": value.shown_value, "source": value.source.to_string()}))
            .collect();
        print::json(&values)?;
        return Ok(Outcome::Fine);
    }
    let rows: Vec<_> = loaded
        .values
        .iter()
        .map(|value| {
            let shown = if value.shown_value.is_empty() { "\"\"" } else { &value.shown_value };
            [value.key.clone(), shown.to_owned(), value.source.to_string()]
        })
        .collect();
    print::table(["SETTING", "VALUE", "FROM"], &rows)?;
    Ok(Outcome::Fine)
}
