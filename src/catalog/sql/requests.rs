//! Requests that carry an idempotency key.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Row};

use super::{Lost, Result, SqlCatalog, Tx, now_us, sql};
use crate::catalog::{Answered, Begun, RequestKey, Requests};

/// Requests without an answer of gateways other than $1 that were not seen since $2.
const GONE: &str = "answer IS NULL AND gateway <> $1 AND NOT EXISTS
    (SELECT 1 FROM gateways g WHERE g.id = idempotent_requests.gateway AND g.seen_at >= $2)";

impl SqlCatalog {
    pub(super) async fn forget_own(&self, tx: &mut Tx, request: &RequestKey) -> Result<()> {
        sql("DELETE FROM idempotent_requests
             WHERE scope = $1 AND request_key = $2 AND gateway = $3 AND answer IS NULL AND fingerprint = $4")
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(self.gateway.as_str())
        .bind(request.mark.as_str())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

#[async_trait]
impl Requests for SqlCatalog {
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun> {
        loop {
            let mut tx = self.begin().await?;
            // Its mark stands where the fingerprint of its answer will.
            let first =
                sql("INSERT INTO idempotent_requests (scope, request_key, created_at, gateway, fingerprint)
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (scope, request_key) DO NOTHING")
                .bind(request.scope.as_str())
                .bind(request.key.as_str())
                .bind(now_us())
                .bind(self.gateway.as_str())
                .bind(request.mark.as_str())
                .execute(&mut *tx)
                .await?
                .rows_affected()
                    > 0;
            if first {
                if let Err(error) = tx.commit().await {
                    self.remember_lost(Lost::Request(request.clone()));
                    return Err(error);
                }
                return Ok(Begun::First);
            }
            let row = sql(
                "SELECT fingerprint, answer FROM idempotent_requests WHERE scope = $1 AND request_key = $2",
            )
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .fetch_optional(&mut *tx)
            .await?;
            tx.commit().await?;
            // Otherwise it came to nothing between the two statements, and this one may be the first after all.
            let Some(row) = row else { continue };
            let (fingerprint, answer): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            return Ok(match fingerprint.zip(answer) {
                Some((fingerprint, answer)) => Begun::Answered(Answered { fingerprint, answer }),
                None => Begun::Running,
            });
        }
    }

    async fn forget_request(&self, request: &RequestKey) -> Result<()> {
        let mut tx = self.begin().await?;
        self.forget_own(&mut tx, request).await?;
        tx.commit().await
    }

    async fn take_over_request(&self, request: &RequestKey) -> Result<bool> {
        let mut tx = self.begin().await?;
        let abandoned = sql(
            "UPDATE reservations SET scope = NULL, request_key = NULL
             WHERE scope = $1 AND request_key = $2 AND gateway = $3 AND process <> $4 RETURNING request_mark",
        )
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(self.gateway.as_str())
        .bind(self.process.as_str())
        .fetch_all(&mut *tx)
        .await?;
        for row in &abandoned {
            let mark = row.try_get::<Option<String>, _>(0)?.unwrap_or_default();
            self.forget_own(&mut tx, &RequestKey { mark, ..request.clone() }).await?;
        }
        tx.commit().await?;
        Ok(!abandoned.is_empty())
    }

    async fn take_from_gone(&self, request: &RequestKey, since_us: i64) -> Result<bool> {
        let mut tx = self.begin().await?;
        let taken = sql(AssertSqlSafe(format!(
            "UPDATE idempotent_requests SET gateway = $1, fingerprint = $5, created_at = $6
             WHERE scope = $3 AND request_key = $4 AND created_at < $2 AND {GONE}"
        )))
        .bind(self.gateway.as_str())
        .bind(since_us)
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(request.mark.as_str())
        .bind(now_us())
        .execute(&mut *tx)
        .await?
        .rows_affected()
            > 0;
        if !taken {
            return Ok(false);
        }
        // No process of ours has this name: whoever looks for what was left in the middle finds them.
        sql("UPDATE reservations SET gateway = $3, process = '', scope = NULL, request_key = NULL
             WHERE scope = $1 AND request_key = $2")
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(self.gateway.as_str())
        .execute(&mut *tx)
        .await?;
        if let Err(error) = tx.commit().await {
            self.remember_lost(Lost::Request(request.clone()));
            return Err(error);
        }
        Ok(true)
    }

    async fn expire_requests(&self, older_than_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        sql(AssertSqlSafe(format!(
            "DELETE FROM idempotent_requests WHERE created_at < $2 AND (answer IS NOT NULL OR ({GONE}))"
        )))
        .bind(self.gateway.as_str())
        .bind(older_than_us)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}
