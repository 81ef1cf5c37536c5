//! Both lists: the old one by folder and without regard to case, the new one by true prefix and cursor.
//!
//! Apart because their rules of matching and order share nothing with the rest.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::auth::{Right, Who};
use super::exchange::Exchange;
use super::project::{Project, Row, iso};
use super::refusal::{self, Refusal, Reply};
use super::wire::Answer;

/// `POST /object/list/{bucket}`.
pub async fn by_folder(x: &mut Exchange<'_>, bucket: &str) -> Reply {
    let body = x.object(&["prefix"]).await?;
    let who = x.who()?;
    let limit = at_least(&body, "limit", 1)?.unwrap_or(100) as usize;
    let offset = at_least(&body, "offset", 0)?.unwrap_or(0) as usize;
    let columns = ["name", "created_at", "updated_at", "last_accessed_at"];
    let (column, descending) = sort_by(&body, &columns)?;
    let mut prefix = body["prefix"].as_str().unwrap_or_default().to_owned();
    if !prefix.is_empty() && !prefix.ends_with('/') {
        prefix.push('/');
    }
    let searched = format!("{prefix}{}", body["search"].as_str().unwrap_or_default()).to_lowercase();
    // A search that holds slashes goes as many levels deeper.
    let level = searched.rfind('/').map_or(0, |at| at + 1);
    let project = x.project();
    let mut folders: BTreeMap<String, String> = BTreeMap::new();
    let mut objects: Vec<(&str, &Row)> = Vec::new();
    for (key, row) in visible_rows(&project, &who, bucket) {
        if !key.to_lowercase().starts_with(&searched) {
            continue;
        }
        match key[level..].find('/') {
            // Folders that differ only in case are one; the lower-case spelling sorts first.
            Some(at) => {
                let name = &key[prefix.len()..level + at];
                folders
                    .entry(name.to_lowercase())
                    .and_modify(|shown| *shown = shown.as_str().max(name).to_owned())
                    .or_insert_with(|| name.to_owned());
            }
            None => objects.push((&key[prefix.len()..], row)),
        }
    }
    let folder = |name: &String| {
        json!({"name": name, "id": null, "updated_at": null, "created_at": null, "last_accessed_at": null,
            "metadata": null})
    };
    let mut entries: Vec<((bool, String), Value)> = Vec::new();
    for (lower, name) in &folders {
        entries.push(((false, lower.clone()), folder(name)));
    }
    for (name, row) in objects {
        let rank = match column {
            "name" => (false, name.to_lowercase()),
            "updated_at" => (true, iso(row.updated_at)),
            _ => (true, iso(row.created_at)),
        };
        entries.push((rank, row.listed(name)));
    }
    // Sorting by anything but the name puts folders first, in either direction.
    entries.sort_by(|((a_object, a), _), ((b_object, b), _)| {
        a_object.cmp(b_object).then(if descending { b.cmp(a) } else { a.cmp(b) })
    });
    let mut page: Vec<Value> = entries.into_iter().map(|(_, value)| value).skip(offset).take(limit).collect();
    if x.effects.truncate_list {
        page.truncate(page.len() / 2);
    }
    Ok(Answer::json(200, &Value::Array(page)))
}

/// One line of the new list: its place in the order, its full name, its row unless it is a folder.
struct Entry<'a> {
    place: (String, String),
    name: String,
    row: Option<&'a Row>,
}

/// `POST /object/list-v2/{bucket}`.
pub async fn by_prefix(x: &mut Exchange<'_>, bucket: &str) -> Reply {
    let body = x.object(&[]).await?;
    let who = x.who()?;
    let limit = at_least(&body, "limit", 1)?.unwrap_or(1000).min(1000) as usize;
    let (mut column, mut descending) = sort_by(&body, &["name", "created_at", "updated_at"])?;
    let prefix = body["prefix"].as_str().unwrap_or_default();
    let with_delimiter = body["with_delimiter"].as_bool().unwrap_or(false);
    let cursor = body["cursor"].as_str().map(Cursor::parse).transpose()?;
    if let Some(cursor) = &cursor {
        (column, descending) = (cursor.column, cursor.descending);
    }
    let project = x.project();
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for (key, row) in visible_rows(&project, &who, bucket).filter(|(key, _)| key.starts_with(prefix)) {
        let folder = with_delimiter.then(|| key[prefix.len()..].find('/')).flatten();
        if let Some(at) = folder {
            let name = key[..prefix.len() + at + 1].to_owned();
            if entries.last().is_none_or(|entry| entry.name != name) {
                entries.push(Entry { place: (String::new(), name.clone()), name, row: None });
            }
            continue;
        }
        let rank = match column {
            "created_at" => iso(row.created_at),
            "updated_at" => iso(row.updated_at),
            _ => String::new(),
        };
        entries.push(Entry { place: (rank, key.clone()), name: key.clone(), row: Some(row) });
    }
    entries.sort_by(|a, b| if descending { b.place.cmp(&a.place) } else { a.place.cmp(&b.place) });
    if let Some(cursor) = &cursor {
        entries
            .retain(|entry| if descending { entry.place < cursor.place } else { entry.place > cursor.place });
    }
    let cut = if x.effects.truncate_list { entries.len() / 2 } else { limit };
    let has_next = entries.len() > cut && !x.effects.truncate_list;
    entries.truncate(cut);
    let mut answer = json!({"hasNext": has_next, "folders": [], "objects": []});
    if let Some(last) = entries.last().filter(|_| has_next) {
        answer["nextCursor"] = json!(Cursor::write(last, column, descending));
        answer["nextCursorKey"] = json!(last.name);
    }
    for entry in &entries {
        let key = entry.name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match entry.row {
            Some(row) => {
                let mut shown = row.listed(&entry.name);
                if with_delimiter {
                    shown["key"] = json!(key);
                }
                push(&mut answer["objects"], shown);
            }
            None => push(
                &mut answer["folders"],
                json!({"key": key, "name": entry.name, "id": null, "updated_at": null, "created_at": null,
                    "last_accessed_at": null, "metadata": null}),
            ),
        }
    }
    Ok(Answer::json(200, &answer))
}

fn push(list: &mut Value, entry: Value) {
    list.as_array_mut().expect("made as a list above").push(entry);
}

fn visible_rows<'a>(
    project: &'a Project,
    who: &'a Who,
    bucket: &'a str,
) -> impl Iterator<Item = (&'a String, &'a Row)> {
    let rows = project.bucket(bucket).into_iter().flat_map(|bucket| &bucket.rows);
    rows.filter(move |(key, _)| project.may(who, Right::Select, bucket, key))
}

/// The place where the next page goes on: base64 of lines `l:` name, `o:` order, `c:` column, `a:` its value.
struct Cursor {
    place: (String, String),
    column: &'static str,
    descending: bool,
}

impl Cursor {
    fn parse(text: &str) -> Result<Cursor, Refusal> {
        let refused = || refusal::invalid_parameter("continuation token");
        let bytes = STANDARD.decode(text).map_err(|_| refused())?;
        let lines = String::from_utf8(bytes).map_err(|_| refused())?;
        let mut cursor = Cursor { place: Default::default(), column: "name", descending: false };
        for line in lines.split('\n') {
            match line.split_once(':') {
                Some(("l", name)) => cursor.place.1 = name.to_owned(),
                Some(("a", value)) => cursor.place.0 = value.to_owned(),
                Some(("o", order)) => cursor.descending = order == "desc",
                Some(("c", "created_at")) => cursor.column = "created_at",
                Some(("c", "updated_at")) => cursor.column = "updated_at",
                _ => return Err(refused()),
            }
        }
        Ok(cursor)
    }

    fn write(last: &Entry<'_>, column: &str, descending: bool) -> String {
        let mut lines = format!("l:{}", last.name);
        if descending {
            lines.push_str("\no:desc");
        }
        if column != "name" {
            lines.push_str(&format!("\nc:{column}\na:{}", last.place.0));
        }
        STANDARD.encode(lines)
    }
}

fn at_least(body: &Value, name: &str, least: i64) -> Result<Option<i64>, Refusal> {
    let Some(value) = body.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_i64().ok_or_else(|| refusal::schema(format!("body/{name} must be integer")))?;
    if number < least {
        return Err(refusal::schema(format!("body/{name} must be >= {least}")));
    }
    Ok(Some(number))
}

fn sort_by<'a>(body: &Value, columns: &[&'a str]) -> Result<(&'a str, bool), Refusal> {
    let Some(sort) = body.get("sortBy").filter(|sort| !sort.is_null()) else {
        return Ok((columns[0], false));
    };
    let Some(column) = sort["column"].as_str() else {
        return Err(refusal::schema("body/sortBy must have required property 'column'"));
    };
    let known = columns.iter().find(|known| **known == column);
    let column = known
        .ok_or_else(|| refusal::schema("body/sortBy/column must be equal to one of the allowed values"))?;
    Ok((column, sort["order"].as_str() == Some("desc")))
}
