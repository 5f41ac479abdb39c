//! `Meters`: meters come, are looked at, and go.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kms_proto::v1::{
    BuryDamagedMeterRequest, BuryDamagedMeterResponse, CreateMeterRequest, CreateMeterResponse,
    DeclareCounterRequest, DeclareCounterResponse, DeleteMeterRequest, DeleteMeterResponse,
    GetImportKeyRequest, GetImportKeyResponse, GetMeterRequest, GetMeterResponse,
    ImportMetersRequest, ImportMetersResponse, ListMetersRequest, ListMetersResponse,
    ReadmitMeterRequest, ReadmitMeterResponse, SetPolicyRequest, SetPolicyResponse, meters_server,
};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{
    importing::Importing,
    in_order::{Answers, to_its_end},
    sealed,
};
use crate::{
    lifecycle::{Created, Lifecycle, LifecycleError, Readmitted},
    rpc::{
        access::{policy::Permit, verb::Verb},
        gate::recording::Recorder,
        messages::{
            lifecycle_status::of_lifecycle,
            status::{Refused, of_incoming},
            transmitting, words,
        },
        shares::budget::Budget,
    },
    transmitting::{Declaration, Transmitting},
};
use kms_core::{
    BlockNo,
    audit::{Detail, Subject},
};

/// Meters on a page unless the caller says otherwise.
const PAGE_DEFAULT: u32 = 100;
/// Meters on a page at most.
const PAGE_MAX: u32 = kms_core::wire::PAGE_MAX;

/// The operators' side of the wire.
#[derive(Clone)]
pub(crate) struct MetersService {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) audit: Recorder,
    pub(crate) budget: Budget,
    pub(crate) message_bytes_max: usize,
}

#[async_trait]
impl meters_server::Meters for MetersService {
    async fn create_meter(
        &self,
        request: Request<CreateMeterRequest>,
    ) -> Result<Response<CreateMeterResponse>, Status> {
        let permit = Permit::of(&request, Verb::CreateMeter)?;
        let call = self.audit.call(&permit, &request);
        let CreateMeterRequest { meter, rules } = request.into_inner();
        let (meter, rules) = (words::new_meter(meter)?, words::rules(rules));
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let subject =
            Subject { system_title: Some(meter.system_title), ..Subject::meter(&meter.meter_id) };
        let Created { view, warnings, states } = to_its_end(async move {
            let _charge = charge;
            match lifecycle.create(&call, meter, rules).await {
                Ok(created) => Ok(created),
                // `lifecycle` has recorded it.
                Err(error @ LifecycleError::Refused(_)) => Err(of_lifecycle(&error)),
                Err(error) => Err(audit.failure(&call, subject, &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        let meter = Some(words::meter(view));
        Ok(Response::new(CreateMeterResponse { meter, warnings, replicated }))
    }

    async fn get_meter(
        &self,
        request: Request<GetMeterRequest>,
    ) -> Result<Response<GetMeterResponse>, Status> {
        let permit = Permit::of(&request, Verb::GetMeter)?;
        let call = self.audit.call(&permit, &request);
        let GetMeterRequest { meter_id, system_title } = request.into_inner();
        let _charge = self.budget.charge(&permit, 1)?;
        let title = words::optional_title("system_title", &system_title)?;
        let (subject, view) = match (meter_id.as_str(), title) {
            ("", Some(title)) => (Subject::title(title), self.lifecycle.get_by_title(&title).await),
            (id, None) => {
                let id = words::meter_id("meter_id", id)?;
                (Subject::meter(&id), self.lifecycle.get(&id).await)
            }
            (_, Some(_)) => {
                let problem = "give a meter id or a system title, not both";
                return Err(Refused::Field { field: "meter_id", problem }.into());
            }
        };
        let view = match view {
            Ok(view) => view,
            Err(error) => return Err(self.audit.failure(&call, subject, &error).await),
        };
        self.audit.record(self.audit.entry(&call, subject)).await?;
        Ok(Response::new(GetMeterResponse { meter: Some(words::meter(view)) }))
    }

    async fn list_meters(
        &self,
        request: Request<ListMetersRequest>,
    ) -> Result<Response<ListMetersResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListMeters)?;
        let call = self.audit.call(&permit, &request);
        let ListMetersRequest { after, page_size } = request.into_inner();
        let size = page(page_size)?;
        let after = match after.as_str() {
            "" => None,
            id => Some(words::meter_id("after", id)?),
        };
        let _charge = self.budget.charge(&permit, 1)?;
        let page = match self.lifecycle.list(after.as_ref(), size).await {
            Ok(page) => page,
            Err(error) => return Err(self.audit.failure(&call, Subject::NONE, &error).await),
        };
        let entry = self.audit.entry(&call, Subject { meter_id: after, ..Subject::NONE });
        self.audit.record(entry.with(Detail::Items, page.meters.len() as u64)).await?;
        Ok(Response::new(words::page(page)))
    }

    async fn delete_meter(
        &self,
        request: Request<DeleteMeterRequest>,
    ) -> Result<Response<DeleteMeterResponse>, Status> {
        let permit = Permit::of(&request, Verb::DeleteMeter)?;
        let call = self.audit.call(&permit, &request);
        let id = words::meter_id("meter_id", &request.into_inner().meter_id)?;
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let states = to_its_end(async move {
            let _charge = charge;
            match lifecycle.delete(&call, &id).await {
                Ok(states) => Ok(states),
                Err(error) => Err(audit.failure(&call, Subject::meter(&id), &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        Ok(Response::new(DeleteMeterResponse { replicated }))
    }

    async fn bury_damaged_meter(
        &self,
        request: Request<BuryDamagedMeterRequest>,
    ) -> Result<Response<BuryDamagedMeterResponse>, Status> {
        let permit = Permit::of(&request, Verb::BuryDamagedMeter)?;
        let call = self.audit.call(&permit, &request);
        let BuryDamagedMeterRequest { system_title, block } = request.into_inner();
        let title = words::title("system_title", &system_title)?;
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let (block, states) = to_its_end(async move {
            let _charge = charge;
            match lifecycle.bury(&call, &title, block.map(BlockNo)).await {
                Ok(buried) => Ok(buried),
                Err(error) => Err(audit.failure(&call, Subject::title(title), &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        Ok(Response::new(BuryDamagedMeterResponse { block: block.0, replicated }))
    }

    async fn readmit_meter(
        &self,
        request: Request<ReadmitMeterRequest>,
    ) -> Result<Response<ReadmitMeterResponse>, Status> {
        let permit = Permit::of(&request, Verb::ReadmitMeter)?;
        // The gate lets nobody pass alone; were it ever to forget, this does not.
        if permit.second().is_none() {
            return Err(Refused::Fault("one person alone came to readmit a meter").into());
        }
        let call = self.audit.call(&permit, &request);
        let ReadmitMeterRequest { meter_id, system_title } = request.into_inner();
        let id = words::meter_id("meter_id", &meter_id)?;
        let title = words::title("system_title", &system_title)?;
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let (readmitted, states) = to_its_end(async move {
            let _charge = charge;
            let subject = Subject { system_title: Some(title), ..Subject::meter(&id) };
            match lifecycle.readmit(&call, &id, &title).await {
                Ok(readmitted) => Ok(readmitted),
                Err(error) => Err(audit.failure(&call, subject, &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        let Readmitted { deleted_ms, keys_known, keys_that_may_come_back } = readmitted;
        Ok(Response::new(ReadmitMeterResponse {
            deleted_ms,
            keys_known: u32::try_from(keys_known).unwrap_or(u32::MAX),
            keys_that_may_come_back: u32::try_from(keys_that_may_come_back).unwrap_or(u32::MAX),
            replicated,
        }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let permit = Permit::of(&request, Verb::SetPolicy)?;
        let call = self.audit.call(&permit, &request);
        let SetPolicyRequest { meter_id, policy } = request.into_inner();
        let id = words::meter_id("meter_id", &meter_id)?;
        let missing = Refused::Field { field: "policy", problem: "it is missing" };
        let policy = words::new_policy(policy.ok_or(missing)?)?;
        let charge = self.budget.charge(&permit, 1)?;
        let (lifecycle, audit) = (Arc::clone(&self.lifecycle), self.audit.clone());
        let (view, states) = to_its_end(async move {
            let _charge = charge;
            match lifecycle.set_policy(&call, &id, &policy).await {
                Ok(set) => Ok(set),
                Err(error) => Err(audit.failure(&call, Subject::meter(&id), &error).await),
            }
        })
        .await?;
        let replicated = words::replicated(self.lifecycle.replicated(&states).await) as i32;
        Ok(Response::new(SetPolicyResponse { meter: Some(words::meter(view)), replicated }))
    }

    async fn declare_counter(
        &self,
        request: Request<DeclareCounterRequest>,
    ) -> Result<Response<DeclareCounterResponse>, Status> {
        let permit = Permit::of(&request, Verb::DeclareCounter)?;
        let call = self.audit.call(&permit, &request);
        let request = request.into_inner();
        let DeclareCounterRequest { security_setup, client, broadcast, .. } = request;
        transmitting::whose(&request.meter_id, &request.system_title)?;
        let (setup, client, key_set) = transmitting::key(security_setup, client, broadcast)?;
        let two_people = permit.second().is_some();
        let charge = self.budget.charge(&permit, 1)?;
        let (parts, audit) = (Arc::clone(&self.transmitting), self.audit.clone());
        let declared = to_its_end(async move {
            let _charge = charge;
            let whose = transmitting::whose(&request.meter_id, &request.system_title)?;
            let last = request.last_invocation_counter;
            let declaration = Declaration { whose, setup, client, key_set, last, two_people };
            match parts.declare(&call, declaration).await {
                Ok(declared) => Ok(declared),
                Err(error) => {
                    let (word, is_ours) = transmitting::word_of_declaration(&error);
                    audit.not_done(&call, word, is_ours).await?;
                    Err(transmitting::of_declaration(&error))
                }
            }
        })
        .await?;
        let replicated = self.transmitting.replicated(&declared.states).await;
        Ok(Response::new(DeclareCounterResponse {
            system_title: declared.system_title.as_bytes().to_vec().into(),
            client_title: declared.client_title.as_bytes().to_vec().into(),
            at_least: declared.at_least,
            changed: declared.changed,
            replicated: words::replicated(replicated) as i32,
        }))
    }

    type ImportMetersStream = Answers<ImportMetersResponse>;

    async fn import_meters(
        &self,
        request: Request<Streaming<ImportMetersRequest>>,
    ) -> Result<Response<Self::ImportMetersStream>, Status> {
        let permit = Permit::of(&request, Verb::ImportMeters)?;
        let call = self.audit.call(&permit, &request);
        let limit = self.message_bytes_max;
        let messages = request
            .into_inner()
            .map(move |message| message.map_err(|status| of_incoming(status, limit)));
        let (lifecycle, audit, budget) =
            (Arc::clone(&self.lifecycle), self.audit.clone(), self.budget.clone());
        let (rules, file) = (None, None);
        let importing = Importing { lifecycle, audit, budget, call, permit, rules, file };
        let state = (importing, messages);
        // One message after the other: a later line may repeat a meter of an earlier one.
        let answers = stream::try_unfold(state, |(mut importing, mut messages)| async move {
            match messages.try_next().await? {
                Some(message) => {
                    let answer = importing.answer(message).await?;
                    Ok(Some((answer, (importing, messages))))
                }
                None => importing.end().await.map(|()| None),
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_import_key(
        &self,
        request: Request<GetImportKeyRequest>,
    ) -> Result<Response<GetImportKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::GetImportKey)?;
        let call = self.audit.call(&permit, &request);
        let _charge = self.budget.charge(&permit, 1)?;
        let key = match self.lifecycle.import_key().await {
            Ok(key) => key,
            Err(error) => return Err(self.audit.failure(&call, Subject::NONE, &error).await),
        };
        self.audit.record(self.audit.entry(&call, Subject::NONE)).await?;
        let (domain_id, site) = self.lifecycle.import_site();
        Ok(Response::new(GetImportKeyResponse {
            site: site.to_owned(),
            domain_id: domain_id.to_vec().into(),
            public_key: key.to_der().into(),
            fingerprint: key.fingerprint().to_vec().into(),
            oaep_hash: sealed::oaep_hash(key.oaep_hash) as i32,
        }))
    }
}

fn page(size: u32) -> Result<u32, Refused> {
    match size {
        0 => Ok(PAGE_DEFAULT),
        1..=PAGE_MAX => Ok(size),
        _ => Err(Refused::Field { field: "page_size", problem: "a page has 1,000 meters at most" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded() {
        assert_eq!(page(0), Ok(100));
        assert_eq!(page(1_000), Ok(1_000));
        assert!(page(1_001).is_err());
    }
}
