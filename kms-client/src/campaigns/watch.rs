//! A campaign's progress, again and again, over connections that may break.

use std::time::Duration;

use futures_util::{Stream, stream};
use kms_proto::v1;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::view::Campaign;
use crate::call::CallError;
use crate::rotation::Rotation;
use crate::sites::Errand;
use crate::stubs;
use crate::transport::{Tries, connected, within};

/// Between two answers where nothing was said.
const EVERY_S: u32 = 2;

/// Ends with the answer that says that the campaign is over.
pub(super) fn watch(
    rotation: Rotation,
    name: String,
    every_s: u32,
) -> impl Stream<Item = Result<Campaign, CallError>> + Send + Unpin + 'static {
    let watch = Watch { rotation, name, every_s, replies: None, is_over: false };
    Box::pin(stream::try_unfold(watch, |mut watch| async move {
        if watch.is_over {
            return Ok(None);
        }
        let campaign = watch.next().await?;
        watch.is_over = campaign.status.is_over();
        Ok(Some((campaign, watch)))
    }))
}

struct Watch {
    rotation: Rotation,
    name: String,
    every_s: u32,
    replies: Option<Streaming<v1::Campaign>>,
    is_over: bool,
}

impl Watch {
    async fn next(&mut self) -> Result<Campaign, CallError> {
        let rotation = self.rotation.clone();
        let transport = rotation.transport();
        let mut tries = transport.tries(Errand::AtPrimary, None);
        loop {
            match self.receive(&tries, transport.deadline()).await {
                Ok(campaign) => return Ok(Campaign::from_wire(campaign)?),
                Err(status) => {
                    self.replies = None;
                    let until = Instant::now() + transport.deadline();
                    tries.after_break(&status, until).await?;
                }
            }
        }
    }

    /// Waits for the next answer as long as the service lets pass between two, and a call's time more.
    async fn receive(
        &mut self,
        tries: &Tries<'_>,
        patience: Duration,
    ) -> Result<v1::Campaign, Status> {
        let until = Instant::now() + patience;
        let replies = match &mut self.replies {
            Some(replies) => replies,
            none => {
                let link = tries.link();
                connected(until, &link).await?;
                let (name, every_s) = (self.name.clone(), self.every_s);
                let request = tries.request(v1::WatchCampaignRequest { name, every_s });
                let begun = async { stubs::rotation(link).watch_campaign(request).await };
                none.insert(within(until, begun).await?.into_inner())
            }
        };
        let every_s = if self.every_s == 0 { EVERY_S } else { self.every_s };
        let due = Instant::now() + Duration::from_secs(every_s.into()) + patience;
        let reply = within(due, replies.message()).await?;
        reply.ok_or_else(|| Status::unavailable("the stream was ended"))
    }
}
