//! `Groups`: broadcast groups.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use kms_proto::v1::{
    AddMembersRequest, AddMembersResponse, CreateGroupRequest, CreateGroupResponse,
    DeleteGroupRequest, DeleteGroupResponse, EncryptBroadcastRequest, EncryptBroadcastResponse,
    FinishGroupRotationRequest, FinishGroupRotationResponse, GetGroupRequest, GetGroupResponse,
    ListGroupsRequest, ListGroupsResponse, RemoveMembersRequest, RemoveMembersResponse,
    RotateGroupKeyRequest, RotateGroupKeyResponse, groups_server,
};
use tonic::{Request, Response, Status, async_trait};

use super::in_order::to_its_end;
use crate::{
    lifecycle::{Lifecycle, LifecycleError},
    rpc::{
        access::{
            policy::{Permit, Policy},
            verb::Verb,
        },
        gate::recording::Recorder,
        messages::{
            deadline::timeout_of, groups, lifecycle_status::of_lifecycle, request_id::RequestId,
            status::Refused, words,
        },
        shares::budget::Budget,
    },
    transmitting::{Origin, Transmitting},
};
use kms_core::{
    KeyKind,
    audit::{AuditedCall, Detail, Subject},
    block::BlockMark,
    fact::FactName,
};

/// Who keeps groups, and who broadcasts to them.
#[derive(Clone)]
pub(crate) struct GroupsService {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) transmitting: Arc<Transmitting>,
    pub(crate) audit: Recorder,
    pub(crate) budget: Budget,
    pub(crate) policy: Arc<Policy>,
}

impl GroupsService {
    /// Carries a change to its end, whoever hangs up, and records why it failed.
    async fn change<T: Send + 'static>(
        &self,
        permit: &Permit,
        (call, items): (AuditedCall, usize),
        change: impl Future<Output = Result<T, LifecycleError>> + Send + 'static,
    ) -> Result<T, Status> {
        let charge = self.budget.charge(permit, items.max(1))?;
        let audit = self.audit.clone();
        to_its_end(async move {
            let _charge = charge;
            match change.await {
                Ok(done) => Ok(done),
                Err(error) => Err(audit.failure(&call, Subject::NONE, &error).await),
            }
        })
        .await
    }

    async fn replicated(&self, states: &[BlockMark]) -> i32 {
        words::replicated(self.lifecycle.replicated(states).await) as i32
    }

    /// The answer of a call that changes nothing, once it is recorded.
    async fn looked<T>(
        &self,
        call: &AuditedCall,
        looked: Result<(T, usize), LifecycleError>,
    ) -> Result<T, Status> {
        let (seen, items) = match looked {
            Ok(seen) => seen,
            Err(error) => return Err(self.audit.failure(call, Subject::NONE, &error).await),
        };
        let entry = self.audit.entry(call, Subject::NONE);
        self.audit.record(entry.with(Detail::Items, items as u64)).await?;
        Ok(seen)
    }
}

#[async_trait]
impl groups_server::Groups for GroupsService {
    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let permit = Permit::of(&request, Verb::CreateGroup)?;
        let call = self.audit.call(&permit, &request);
        let wanted = groups::wanted(request.into_inner())?;
        let (lifecycle, about) = (Arc::clone(&self.lifecycle), (call.clone(), 1));
        let change = async move { lifecycle.create_group(&call, &wanted).await };
        let (group, states) = self.change(&permit, about, change).await?;
        let (group, replicated) = (Some(groups::group(&group)), self.replicated(&states).await);
        Ok(Response::new(CreateGroupResponse { group, replicated }))
    }

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<GetGroupResponse>, Status> {
        let permit = Permit::of(&request, Verb::GetGroup)?;
        let call = self.audit.call(&permit, &request);
        let name = groups::name(&request.into_inner().name)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let view = self.lifecycle.show_group(&name).await;
        let view = view.map(|view| {
            let members = view.members.len();
            (view, members)
        });
        let view = self.looked(&call, view).await?;
        let mut kinds = [KeyKind::Gbek, KeyKind::Gak].into_iter();
        let rotating = kinds.find(|kind| view.group.rotating(*kind).is_some());
        Ok(Response::new(GetGroupResponse {
            group: Some(groups::group(&view.group)),
            members: view.members.iter().map(groups::member).collect(),
            complete: rotating.is_some_and(|kind| view.is_complete(kind)),
        }))
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let permit = Permit::of(&request, Verb::ListGroups)?;
        let call = self.audit.call(&permit, &request);
        let from = groups::page(&request.into_inner().page_token)?;
        let _charge = self.budget.charge(&permit, 1)?;
        let page = self.lifecycle.list_groups(from).await;
        let page = page.map(|(all, next)| {
            let count = all.len();
            ((all, next), count)
        });
        let (all, next) = self.looked(&call, page).await?;
        Ok(Response::new(ListGroupsResponse {
            groups: all.iter().map(groups::group).collect(),
            next_page_token: next.map_or_else(String::new, |block| block.0.to_string()),
        }))
    }

    async fn add_members(
        &self,
        request: Request<AddMembersRequest>,
    ) -> Result<Response<AddMembersResponse>, Status> {
        let permit = Permit::of(&request, Verb::AddMembers)?;
        let call = self.audit.call(&permit, &request);
        let AddMembersRequest { name, meter_ids, allow_unreplicated } = request.into_inner();
        let (name, ids) = (groups::name(&name)?, groups::meters("meter_ids", &meter_ids)?);
        let (lifecycle, about) = (Arc::clone(&self.lifecycle), (call.clone(), ids.len()));
        let change =
            async move { lifecycle.add_members(&call, (&name, &ids), allow_unreplicated).await };
        let joined = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&joined.states).await;
        Ok(Response::new(groups::joined(joined, replicated)))
    }

    async fn remove_members(
        &self,
        request: Request<RemoveMembersRequest>,
    ) -> Result<Response<RemoveMembersResponse>, Status> {
        let permit = Permit::of(&request, Verb::RemoveMembers)?;
        let call = self.audit.call(&permit, &request);
        let RemoveMembersRequest { name, meter_ids, system_titles } = request.into_inner();
        let name = groups::name(&name)?;
        let ids = groups::meters("meter_ids", &meter_ids)?;
        let titles = groups::titles(&system_titles)?;
        let lifecycle = Arc::clone(&self.lifecycle);
        let about = (call.clone(), ids.len() + titles.len());
        let change = async move { lifecycle.remove_members(&call, &name, (&ids, &titles)).await };
        let left = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&left.states).await;
        Ok(Response::new(groups::left(left, replicated)))
    }

    async fn delete_group(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let permit = Permit::of(&request, Verb::DeleteGroup)?;
        let call = self.audit.call(&permit, &request);
        let name = groups::name(&request.into_inner().name)?;
        let (lifecycle, about) = (Arc::clone(&self.lifecycle), (call.clone(), 1));
        let change = async move { lifecycle.delete_group(&call, &name).await };
        let states = self.change(&permit, about, change).await?;
        let replicated = self.replicated(&states).await;
        Ok(Response::new(DeleteGroupResponse { replicated }))
    }

    async fn rotate_group_key(
        &self,
        request: Request<RotateGroupKeyRequest>,
    ) -> Result<Response<RotateGroupKeyResponse>, Status> {
        let permit = Permit::of(&request, Verb::RotateGroupKey)?;
        let call = self.audit.call(&permit, &request);
        let RotateGroupKeyRequest { name, kind, allow_unreplicated } = request.into_inner();
        let which = (groups::name(&name)?, groups::kind(kind)?);
        let (lifecycle, about) = (Arc::clone(&self.lifecycle), (call.clone(), 1));
        let change = async move {
            let (name, kind) = which;
            lifecycle.rotate_group_key(&call, (&name, kind), allow_unreplicated).await
        };
        let rotated = self.change(&permit, about, change).await?;
        Ok(Response::new(groups::rotated(rotated)))
    }

    async fn finish_group_rotation(
        &self,
        request: Request<FinishGroupRotationRequest>,
    ) -> Result<Response<FinishGroupRotationResponse>, Status> {
        let permit = Permit::of(&request, Verb::FinishGroupRotation)?;
        let call = self.audit.call(&permit, &request);
        let FinishGroupRotationRequest { name, kind, left_out } = request.into_inner();
        let (name, kind) = (groups::name(&name)?, groups::kind(kind)?);
        let ids = left_out.iter().map(|id| words::meter_id("left_out", id));
        let left_out = ids.collect::<Result<BTreeSet<_>, _>>()?;
        let (lifecycle, about) = (Arc::clone(&self.lifecycle), (call.clone(), 1));
        let change =
            async move { lifecycle.finish_group_rotation(&call, (&name, kind), &left_out).await };
        let (group, states) = self.change(&permit, about, change).await?;
        let (group, replicated) = (Some(groups::group(&group)), self.replicated(&states).await);
        Ok(Response::new(FinishGroupRotationResponse { group, replicated }))
    }

    async fn encrypt_broadcast(
        &self,
        request: Request<EncryptBroadcastRequest>,
    ) -> Result<Response<EncryptBroadcastResponse>, Status> {
        let permit = Permit::of(&request, Verb::EncryptBroadcast)?;
        let call = self.audit.call(&permit, &request);
        let until = timeout_of(request.metadata());
        let until = until.and_then(|timeout| Instant::now().checked_add(timeout));
        let request_id = request.extensions().get::<RequestId>().cloned();
        let EncryptBroadcastRequest { name, apdu, form } = request.into_inner();
        let (name, envelope) = (groups::name(&name)?, groups::form(form)?);
        let _charge = self.budget.charge(&permit, 1)?;
        if let Err(reason) = self.transmitting.writes() {
            return Err(of_lifecycle(&LifecycleError::NotPrimary { reason }));
        }
        let group = match self.lifecycle.group(&name).await {
            Ok(group) => group,
            Err(error) => return Err(self.audit.failure(&call, Subject::NONE, &error).await),
        };
        let roles = self.policy.roles(permit.caller());
        let origin = Origin {
            caller: permit.caller().as_str(),
            roles: roles.into_iter().flatten().map(|role| role.name()).collect(),
            call: Verb::EncryptBroadcast.name(),
            request_id: request_id.as_ref().map_or("", RequestId::as_str),
            until,
        };
        let sent = self.transmitting.broadcast(&origin, &group, (&apdu, envelope)).await;
        let entry = self.audit.entry(&call, Subject::NONE);
        let entry = entry.with(Detail::Items, sent.messages.len() as u64);
        self.audit
            .record(entry.with(Detail::Group, FactName::of_group(&group.name).number()))
            .await?;
        let misfit = Refused::Fault("a broadcast's answer does not fit what was asked");
        let answer = groups::broadcast(sent, group.members.len());
        answer.map(Response::new).ok_or(misfit.into())
    }
}
