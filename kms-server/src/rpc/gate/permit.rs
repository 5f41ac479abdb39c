//! The permit of a call, as its service finds it.

use std::sync::Arc;

use tonic::Status;

use crate::rpc::{
    access::{policy::Permit, verb::Verb},
    messages::status::Refused,
};

impl Permit {
    /// The permit that a request came with, if it is one for `verb`. A request without one has not
    /// been through the gate.
    pub(crate) fn of<T>(request: &tonic::Request<T>, verb: Verb) -> Result<Arc<Self>, Status> {
        request
            .extensions()
            .get::<Arc<Self>>()
            .filter(|permit| permit.verb() == verb)
            .map(Arc::clone)
            .ok_or_else(|| Refused::Fault("a call came to its service without a permit").into())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::rpc::access::policy::{CallerName, Policy, Role};

    fn request_with(verb: Verb) -> tonic::Request<()> {
        let name = CallerName::new("x").unwrap();
        let policy = Policy::new([(name.clone(), Role::ALL.to_vec())]);
        let mut request = tonic::Request::new(());
        request.extensions_mut().insert(Arc::new(policy.permit(&name, verb).unwrap()));
        request
    }

    #[test]
    fn a_service_does_nothing_without_a_permit_for_its_verb() {
        assert!(Permit::of(&request_with(Verb::Decrypt), Verb::Decrypt).is_ok());
        for request in [request_with(Verb::VerifyMic), tonic::Request::new(())] {
            let refused = Permit::of(&request, Verb::Decrypt).unwrap_err();
            assert_eq!(refused.code(), Code::Internal);
        }
    }
}
