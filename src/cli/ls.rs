//! `ls`: the sessions, or the recordings of one, to the last page.
//!
//! Rows are passed on as the gateway gave them; `--json` loses nothing that this version does not know.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, print, words};

/// Rows asked for at once.
const PAGE_ROWS: usize = 1000;

#[derive(Args, Debug)]
pub(super) struct LsArgs {
    /// Session whose recordings to list; without it, the sessions
    #[arg(value_parser = words::session)]
    session: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &LsArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let gateway = Gateway::find(&args.gateway, settings)?;
    let (parts, rows_field) = match &args.session {
        Some(session) => (vec![session.as_str(), "list"], "recordings"),
        None => (Vec::new(), "sessions"),
    };
    let listing = all_pages(&gateway, &parts, rows_field).await?;
    if listing["degraded"] == true {
        print::complain("the cloud could not be asked: recordings that only it knows are missing here");
    }
    if args.gateway.json {
        print::json(&listing)?;
        return Ok(Outcome::Fine);
    }
    let rows = listing[rows_field].as_array().map(Vec::as_slice).unwrap_or_default();
    match args.session {
        Some(_) => {
            let rows: Vec<_> = rows.iter().map(recording_row).collect();
            print::table(["UPLOADED", "SIZE", "STORES", "FILENAME"], &rows)?;
        }
        None => {
            let rows: Vec<_> = rows.iter().map(session_row).collect();
            print::table(["NEWEST", "RECORDINGS", "SIZE", "SESSION"], &rows)?;
        }
    }
    Ok(Outcome::Fine)
}

/// The first page with the rows of all pages in it. `degraded` is true if any page was.
pub(super) async fn all_pages(gateway: &Gateway, parts: &[&str], rows_field: &str) -> anyhow::Result<Value> {
    let url = gateway.address(parts)?;
    let mut rows = Vec::new();
    let mut degraded = false;
    let mut cursor: Option<String> = None;
    loop {
        let mut request = gateway.request(Method::GET, url.clone()).query(&[("limit", PAGE_ROWS)]);
        if let Some(cursor) = &cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let mut page = gateway.send(request).await?;
        match page[rows_field].take() {
            Value::Array(found) => rows.extend(found),
            _ => anyhow::bail!("the answer has no {rows_field}: is another program at {url}?"),
        }
        degraded |= page["degraded"] == true;
        let next = page["next_cursor"].as_str().map(str::to_owned);
        if next.is_some() && next == cursor {
            anyhow::bail!("the gateway gives the same page again and again");
        }
        cursor = next;
        if cursor.is_none() {
            page[rows_field] = rows.into();
            if degraded {
                page["degraded"] = json!(true);
            }
            if let Some(page) = page.as_object_mut() {
                page.remove("next_cursor");
            }
            return Ok(page);
        }
    }
}

/// The first `limit` rows of a list, over as many pages as that takes.
pub(super) async fn some_rows(
    gateway: &Gateway,
    url: Url,
    filters: &[(&str, &Option<String>)],
    rows_field: &str,
    limit: usize,
) -> anyhow::Result<Vec<Value>> {
    let filters: Vec<_> =
        filters.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
    let mut rows = Vec::new();
    let mut cursor: Option<String> = None;
    while rows.len() < limit {
        let page = (limit - rows.len()).min(PAGE_ROWS).to_string();
        let mut request = gateway.request(Method::GET, url.clone()).query(&filters).query(&[("limit", page)]);
        if let Some(cursor) = &cursor {
            request = request.query(&[("cursor", cursor)]);
        }
        let mut page = gateway.send(request).await?;
        match page[rows_field].take() {
            Value::Array(found) if !found.is_empty() => rows.extend(found),
            Value::Array(_) => break,
            _ => anyhow::bail!("the answer has no {rows_field}: is another program at {url}?"),
        }
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    Ok(rows)
}

fn recording_row(row: &Value) -> [String; 4] {
    let stores: Vec<_> = row["stores"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let stores = if stores.is_empty() { text(row, "storage_type") } else { stores.join("+") };
    [text(row, "upload_time"), size(row, "file_size"), stores, text(row, "filename")]
}

fn session_row(row: &Value) -> [String; 4] {
    let count = row["count"].as_u64().map_or("-".into(), |count| count.to_string());
    [text(row, "newest"), count, size(row, "bytes"), text(row, "session_id")]
}

pub(super) fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or("-").to_owned()
}

fn size(row: &Value, field: &str) -> String {
    row[field].as_u64().map_or("-".into(), print::size)
}
