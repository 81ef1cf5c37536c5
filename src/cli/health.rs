//! `health`: what the running gateway says about itself, part by part; fails when it takes no recordings.
//!
//! Apart from `check`, which looks at the configuration from outside and also works without a running gateway. Made
//! for a container's health check too, so it asks once and waits a few seconds at most.

use clap::Args;

use super::client::{Gateway, GatewayArgs};
use super::{Outcome, Settings, print};

#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
}

pub(super) async fn run(args: &HealthArgs, settings: &Settings) -> anyhow::Result<Outcome> {
    let (takes_recordings, told) = Gateway::find(&args.gateway, settings)?.readiness().await?;
    if args.gateway.json {
        print::json(&told)?;
    } else {
        for check in told["checks"].as_array().into_iter().flatten() {
            let field = |name: &str| print::visible(check[name].as_str().unwrap_or("-"));
            print::line(format_args!("{:<11}  {:<9}  {}", field("status"), field("name"), field("detail")))?;
        }
    }
    Ok(if takes_recordings { Outcome::Fine } else { Outcome::Failures })
}
