//! Whole tables on their way from one catalogue to another, as JSON that one database writes and the other reads: rows
//! are never taken apart in between, so a column that a later step of the schema adds goes with the rest.
//!
//! Apart from the statements that know what the tables mean. What may be copied where is decided in `catalog::copy`.

use sqlx::{AssertSqlSafe, Row};

use super::{Result, SqlCatalog, Tx, sql};

/// A table and its columns, each with whether it is a number.
#[derive(Clone, Debug)]
pub(in crate::catalog) struct Table {
    pub(in crate::catalog) name: String,
    columns: Vec<(String, bool)>,
}

/// Some rows, and where the next ones begin.
pub(in crate::catalog) struct Batch {
    rows: String,
    pub(in crate::catalog) count: i64,
    pub(in crate::catalog) last: i64,
}

/// Rows in one transaction.
const BATCH: i64 = 2000;

/// What the databases keep for themselves.
const NOT_OURS: &str = "_sqlx_migrations";

impl Table {
    fn listed(&self, column: impl Fn(usize, &str, bool) -> String) -> String {
        let columns = self.columns.iter().enumerate();
        columns.map(|(at, (name, is_number))| column(at, name, *is_number)).collect::<Vec<_>>().join(", ")
    }
}

impl SqlCatalog {
    /// The tables of an embedded catalogue.
    pub(in crate::catalog) async fn tables(&self) -> Result<Vec<Table>> {
        let mut tx = self.snapshot().await?;
        let rows = sql("SELECT t.name, c.name, CASE WHEN c.type = 'BIGINT' THEN 1 ELSE 0 END
             FROM sqlite_master t, pragma_table_info(t.name) c
             WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite%' AND t.name <> $1 ORDER BY t.name, c.cid")
        .bind(NOT_OURS)
        .fetch_all(&mut *tx)
        .await?;
        let mut tables: Vec<Table> = Vec::new();
        for row in &rows {
            let name: String = row.try_get(0)?;
            if tables.last().is_none_or(|table| table.name != name) {
                tables.push(Table { name, columns: Vec::new() });
            }
            if let Some(table) = tables.last_mut() {
                table.columns.push((row.try_get(1)?, row.try_get::<i64, _>(2)? != 0));
            }
        }
        Ok(tables)
    }

    /// The rows behind `after`, of an embedded catalogue.
    pub(in crate::catalog) async fn read_batch(&self, table: &Table, after: i64) -> Result<Batch> {
        let columns = table.listed(|_, name, is_number| match is_number {
            true => format!("\"{name}\""),
            // PostgreSQL has no NUL in texts.
            false => format!("replace(\"{name}\", char(0), '')"),
        });
        let row = sql(AssertSqlSafe(format!(
            "SELECT json_group_array(json_array({columns})), count(*), coalesce(max(position), 0) FROM
                 (SELECT rowid AS position, * FROM \"{}\" WHERE rowid > $1 ORDER BY rowid LIMIT {BATCH})",
            table.name
        )))
        .bind(after)
        .fetch_one(&mut *self.snapshot().await?)
        .await?;
        Ok(Batch { rows: row.try_get(0)?, count: row.try_get(1)?, last: row.try_get(2)? })
    }

    /// Adds rows that are not there yet, to a catalogue on PostgreSQL.
    pub(in crate::catalog) async fn write_batch(&self, table: &Table, batch: &Batch) -> Result<()> {
        let names = table.listed(|_, name, _| format!("\"{name}\""));
        let values = table.listed(|at, _, is_number| match is_number {
            true => format!("(e->>{at})::bigint"),
            false => format!("e->>{at}"),
        });
        let mut tx = self.begin().await?;
        sql(AssertSqlSafe(format!(
            "INSERT INTO \"{}\" ({names}) SELECT {values} FROM json_array_elements($1::json) AS e ON CONFLICT DO NOTHING",
            table.name
        )))
        .bind(batch.rows.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// Rows of a table, without the fact of this name.
    pub(in crate::catalog) async fn count(&self, table: &Table, without_facts: [&str; 2]) -> Result<u64> {
        self.count_in(&mut *self.snapshot().await?, table, without_facts).await
    }

    async fn count_in(
        &self,
        connection: &mut sqlx::AnyConnection,
        table: &Table,
        without_facts: [&str; 2],
    ) -> Result<u64> {
        let filter = if table.name == "facts" { "WHERE name NOT IN ($1, $2)" } else { "WHERE $1 <> $2" };
        let row = sql(AssertSqlSafe(format!("SELECT count(*) FROM \"{}\" {filter}", table.name)))
            .bind(without_facts[0])
            .bind(without_facts[1])
            .fetch_one(connection)
            .await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    /// Writes the fact down unless it is there or there is a row in any of the tables. Returns the fact as it is then,
    /// `None` if a row stood in the way. Two that do this at the same time do it one after the other.
    pub(in crate::catalog) async fn claim_when_empty(
        &self,
        tables: &[Table],
        fact: &str,
        value: &str,
    ) -> Result<Option<String>> {
        let mut tx: Tx = self.begin().await?;
        // The table of facts is small and seldom written; gateways that only read it do not wait.
        sql("LOCK TABLE facts IN SHARE ROW EXCLUSIVE MODE").execute(&mut *tx).await?;
        let row = sql("SELECT value FROM facts WHERE name = $1").bind(fact).fetch_optional(&mut *tx).await?;
        if let Some(row) = row {
            return Ok(Some(row.try_get(0)?));
        }
        for table in tables {
            if self.count_in(&mut tx, table, [fact, ""]).await? > 0 {
                return Ok(None);
            }
        }
        sql("INSERT INTO facts (name, value) VALUES ($1, $2)")
            .bind(fact)
            .bind(value)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(value.to_owned()))
    }
}
