//! The calls of `Ciphering` that authenticate both sides of an association.

use kms_proto::v1::{
    AnswerHlsChallengeRequest, AnswerHlsChallengeResponse, BeginHlsRequest, BeginHlsResponse,
    VerifyHlsAnswerRequest, VerifyHlsAnswerResponse,
};
use tonic::{Request, Response, Status};

use super::ciphering::{Came, CipheringService, misfit};
use crate::rpc::{
    access::{policy::Permit, verb::Verb},
    messages::hls::{answered, asked, begin, begun, given, handle, of_not_associated, verified},
};
use kms_core::{SystemTitle, Verdict};

/// An answer and the APDU around it, each with a counter.
const ANSWER_ITEMS: usize = 2;

impl CipheringService {
    pub(super) async fn begin(
        &self,
        request: Request<BeginHlsRequest>,
    ) -> Result<Response<BeginHlsResponse>, Status> {
        let permit = Permit::of(&request, Verb::BeginHls)?;
        let request = request.into_inner();
        let begin = begin(&request)?;
        let _charge = self.budget.charge(&permit, 1)?;
        self.must_write()?;
        let outcome = self.associations.begin(permit.caller().as_str(), begin).await;
        let outcome = outcome.map_err(|why| of_not_associated(&why))?;
        let (title, verdict) = match &outcome {
            Ok(begun) => (Some(begun.system_title), Verdict::Ok),
            Err(outcome) => (outcome.system_title, outcome.verdict),
        };
        self.count(&permit, title, verdict);
        Ok(Response::new(begun(outcome)))
    }

    pub(super) async fn answer(
        &self,
        request: Request<AnswerHlsChallengeRequest>,
    ) -> Result<Response<AnswerHlsChallengeResponse>, Status> {
        let permit = Permit::of(&request, Verb::AnswerHlsChallenge)?;
        let came = Came::of(&request);
        let request = request.into_inner();
        let handle = handle(&request.association)?;
        let asked = asked(&request)?;
        let carried = asked.action.is_some();
        let _charge = self.budget.charge(&permit, ANSWER_ITEMS)?;
        self.must_write()?;
        let origin = self.origin(&permit, &came)?;
        let outcome = self.associations.answer(&origin, handle, asked).await;
        let outcome = outcome.map_err(|why| of_not_associated(&why))?;
        self.count(&permit, outcome.outcome.system_title, outcome.outcome.verdict);
        Ok(Response::new(answered(outcome, carried).map_err(misfit)?))
    }

    pub(super) async fn verify(
        &self,
        request: Request<VerifyHlsAnswerRequest>,
    ) -> Result<Response<VerifyHlsAnswerResponse>, Status> {
        let permit = Permit::of(&request, Verb::VerifyHlsAnswer)?;
        let request = request.into_inner();
        let (handle, given) = (handle(&request.association)?, given(&request)?);
        let _charge = self.budget.charge(&permit, 1)?;
        let caller = permit.caller().as_str();
        let outcome = self.associations.verify(caller, handle, given).await;
        let outcome = outcome.map_err(|why| of_not_associated(&why))?;
        self.count(&permit, Some(outcome.system_title), outcome.verdict);
        Ok(Response::new(verified(outcome)))
    }

    fn count(&self, permit: &Permit, title: Option<SystemTitle>, verdict: Verdict) {
        let outcomes = std::iter::once((title, verdict));
        self.audit.count(permit.caller().as_str(), permit.verb().name(), outcomes);
    }
}
