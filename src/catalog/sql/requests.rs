//! Requests that carry an idempotency key.

use async_trait::async_trait;
use sqlx::Row;

use super::{Result, SqlCatalog, now_us};
use crate::catalog::{Answered, Begun, RequestKey, Requests};

#[async_trait]
impl Requests for SqlCatalog {
    async fn begin_request(&self, request: &RequestKey) -> Result<Begun> {
        let mut tx = self.begin().await?;
        let first = sqlx::query(
            "INSERT INTO idempotent_requests (scope, request_key, created_at, gateway) VALUES ($1, $2, $3, $4)
             ON CONFLICT (scope, request_key) DO NOTHING",
        )
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(now_us())
        .bind(self.gateway.as_str())
        .execute(&mut *tx)
        .await?
        .rows_affected()
            > 0;
        if first {
            tx.commit().await?;
            return Ok(Begun::First);
        }
        let row = sqlx::query(
            "SELECT fingerprint, answer FROM idempotent_requests WHERE scope = $1 AND request_key = $2",
        )
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .fetch_one(&mut *tx)
        .await?;
        let (fingerprint, answer): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(match fingerprint.zip(answer) {
            Some((fingerprint, answer)) => Begun::Answered(Answered { fingerprint, answer }),
            None => Begun::Running,
        })
    }

    async fn forget_request(&self, request: &RequestKey) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "DELETE FROM idempotent_requests WHERE scope = $1 AND request_key = $2 AND answer IS NULL",
        )
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn take_over_request(&self, request: &RequestKey) -> Result<bool> {
        let mut tx = self.begin().await?;
        let abandoned = sqlx::query(
            "UPDATE reservations SET scope = NULL, request_key = NULL
             WHERE scope = $1 AND request_key = $2 AND gateway = $3 AND process <> $4",
        )
        .bind(request.scope.as_str())
        .bind(request.key.as_str())
        .bind(self.gateway.as_str())
        .bind(self.process.as_str())
        .execute(&mut *tx)
        .await?
        .rows_affected()
            > 0;
        if abandoned {
            sqlx::query(
                "DELETE FROM idempotent_requests WHERE scope = $1 AND request_key = $2 AND answer IS NULL",
            )
            .bind(request.scope.as_str())
            .bind(request.key.as_str())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(abandoned)
    }

    async fn expire_requests(&self, older_than_us: i64) -> Result<()> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM idempotent_requests WHERE answer IS NOT NULL AND created_at < $1")
            .bind(older_than_us)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
