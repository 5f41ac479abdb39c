//! Between the wire's words for associations and ours, and the status of a step that is not taken.

use dlms::{Suite, hls};
use kms_proto::v1::{
    AnswerHlsChallengeRequest, AnswerHlsChallengeResponse, BeginHlsRequest, BeginHlsResponse,
    HlsAction, VerifyHlsAnswerRequest, VerifyHlsAnswerResponse,
};
use tonic::{Code, Status};

use super::{
    columns::Misfit,
    status::{Again, Refused, Row, status},
    transmitting,
};
use crate::{
    associations::{
        Action, Answered, Asked, Begin, Begun, CHALLENGE_LEN_DEFAULT, Given, GivenAnswer, Handle,
        Mechanism, NotAssociated, Verified,
    },
    transmitting::{Envelope, Outcome},
};
use kms_core::Verdict;

const fn field(field: &'static str, problem: &'static str) -> Refused {
    Refused::Field { field, problem }
}

/// An association to begin.
pub(crate) fn begin(request: &BeginHlsRequest) -> Result<Begin<'_>, Refused> {
    let BeginHlsRequest { meter_id, system_title, security_setup, client, .. } = request;
    let (setup, client, _) = transmitting::key(*security_setup, *client, false)?;
    let suite = request.security_suite.map(|suite| {
        let suite = u8::try_from(suite).ok().and_then(|number| Suite::try_from(number).ok());
        suite.ok_or(field("security_suite", "it is 0, 1 or 2"))
    });
    Ok(Begin {
        whose: transmitting::whose(meter_id, system_title)?,
        setup,
        client,
        mechanism: mechanism(request.mechanism)?,
        suite: suite.transpose()?,
        challenge_len: challenge_len(request)?,
        versions: pair(request.encryption_key_version, request.authentication_key_version)?,
    })
}

/// The versions of GUEK and GAK that the meter is presumed to hold: both, or none.
fn pair(encryption: u32, authentication: u32) -> Result<(u16, u16), Refused> {
    let version = |number, name| {
        u16::try_from(number).map_err(|_| field(name, "a key's version is 1 to 65,535"))
    };
    let encryption = version(encryption, "encryption_key_version")?;
    let authentication = version(authentication, "authentication_key_version")?;
    if (encryption == 0) != (authentication == 0) {
        let problem = "name the versions of both keys, or of none";
        return Err(field("authentication_key_version", problem));
    }
    Ok((encryption, authentication))
}

/// A challenge to answer.
pub(crate) fn asked(request: &AnswerHlsChallengeRequest) -> Result<Asked<'_>, Refused> {
    let said = match request.mechanism {
        0 => None,
        number => Some(mechanism(number)?),
    };
    Ok(Asked {
        challenge: &request.challenge,
        said,
        action: request.action.map(action).transpose()?,
        versions: pair(request.encryption_key_version, request.authentication_key_version)?,
    })
}

/// A mechanism that this service has.
fn mechanism(number: u32) -> Result<Mechanism, Refused> {
    Mechanism::of_number(number).ok_or(field("mechanism", "it is 2, 3, 4, 5 or 6"))
}

fn challenge_len(request: &BeginHlsRequest) -> Result<usize, Refused> {
    let len = match request.challenge_length {
        0 => CHALLENGE_LEN_DEFAULT,
        len => usize::try_from(len).unwrap_or(usize::MAX),
    };
    if !(hls::CHALLENGE_LEN_MIN..=hls::CHALLENGE_LEN_MAX).contains(&len) {
        return Err(field("challenge_length", "a challenge has 8 to 64 bytes"));
    }
    if request.mechanism == 2 && !len.is_multiple_of(16) {
        return Err(field("challenge_length", "for mechanism 2 it is a multiple of 16"));
    }
    Ok(len)
}

/// An association's handle.
pub(crate) fn handle(bytes: &[u8]) -> Result<Handle, Refused> {
    Handle::from_bytes(bytes).ok_or(field("association", "it has 32 bytes: those of BeginHls"))
}

/// How an answer is to be carried.
fn action(action: HlsAction) -> Result<Action, Refused> {
    let HlsAction { invoke_id_and_priority, form, protection } = action;
    let invoke_id_and_priority = u8::try_from(invoke_id_and_priority)
        .map_err(|_| field("invoke_id_and_priority", "it is one byte"))?;
    let (envelope, protection) = transmitting::form(form, protection)?;
    if envelope == Envelope::GeneralCiphering {
        return Err(field("form", "an answer goes out in a glo- or general-glo form"));
    }
    Ok(Action { invoke_id_and_priority, envelope, protection })
}

/// A meter's answer, given in one of the two ways.
pub(crate) fn given(request: &VerifyHlsAnswerRequest) -> Result<Given<'_>, Refused> {
    let answer = match (&request.answer[..], &request.apdu[..]) {
        (answer, []) if !answer.is_empty() => GivenAnswer::Bare(answer),
        ([], apdu) if !apdu.is_empty() => GivenAnswer::Carried(apdu),
        _ => {
            return Err(field(
                "answer",
                "give the answer or the APDU that carries it, and not both",
            ));
        }
    };
    let versions = pair(request.encryption_key_version, request.authentication_key_version)?;
    Ok(Given { answer, versions })
}

/// What was begun, or why nothing was.
pub(crate) fn begun(begun: Result<Begun, Outcome>) -> BeginHlsResponse {
    match begun {
        Ok(begun) => BeginHlsResponse {
            verdict: Verdict::Ok as i32,
            refusal: 0,
            association: begun.handle.to_bytes().to_vec().into(),
            challenge: begun.challenge.into_vec().into(),
            client_system_title: begun.client_title.as_bytes().to_vec().into(),
            system_title: begun.system_title.as_bytes().to_vec().into(),
            expires_in_ms: u32::try_from(begun.expires_in_ms).unwrap_or(u32::MAX),
            reason: String::new(),
        },
        Err(outcome) => BeginHlsResponse {
            verdict: outcome.verdict as i32,
            refusal: outcome.refusal.map_or(0, |refusal| refusal as i32),
            system_title: transmitting::title_bytes(&outcome),
            reason: outcome.reason.map_or_else(String::new, Into::into),
            ..BeginHlsResponse::default()
        },
    }
}

/// An answer to a meter's challenge. Nothing leaves but what was to go out.
pub(crate) fn answered(
    answered: Answered,
    carried: bool,
) -> Result<AnswerHlsChallengeResponse, Misfit> {
    let Answered { outcome, bytes, answer_counter, action_counter, secret_version } = answered;
    if (outcome.verdict == Verdict::Ok) == bytes.is_empty() {
        return Err(Misfit);
    }
    let (answer, apdu) = if carried { (Vec::new(), bytes) } else { (bytes, Vec::new()) };
    Ok(AnswerHlsChallengeResponse {
        verdict: outcome.verdict as i32,
        refusal: outcome.refusal.map_or(0, |refusal| refusal as i32),
        answer: answer.into(),
        apdu: apdu.into(),
        system_title: transmitting::title_bytes(&outcome),
        invocation_counter: answer_counter,
        apdu_invocation_counter: action_counter,
        encryption_key_version: outcome.encryption_key_version.into(),
        authentication_key_version: outcome.authentication_key_version.into(),
        secret_version: secret_version.into(),
        reason: outcome.reason.map_or_else(String::new, Into::into),
    })
}

/// The judgement of a meter's answer.
pub(crate) fn verified(verified: Verified) -> VerifyHlsAnswerResponse {
    VerifyHlsAnswerResponse {
        verdict: verified.verdict as i32,
        system_title: verified.system_title.as_bytes().to_vec().into(),
        encryption_key_version: verified.encryption_key_version.into(),
        authentication_key_version: verified.authentication_key_version.into(),
        secret_version: verified.secret_version.into(),
        invocation_counter: verified.answer_counter,
        apdu_invocation_counter: verified.carrier_counter,
        reason: verified.reason.map_or_else(String::new, Into::into),
    }
}

/// The status of a step that is not taken.
pub(crate) fn of_not_associated(why: &NotAssociated) -> Status {
    let (code, again) = match why {
        NotAssociated::Unknown | NotAssociated::OfAnotherNode(_) | NotAssociated::OutOfOrder(_) => {
            (Code::FailedPrecondition, Again::Never)
        }
        NotAssociated::TooMany { .. } => (Code::ResourceExhausted, Again::Later),
        NotAssociated::NoRandomness => (Code::Internal, Again::Never),
    };
    status(Row { code, word: why.word(), again }, why.to_string(), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_not_is_refused_by_its_field() {
        let good = BeginHlsRequest { meter_id: "m".into(), mechanism: 5, ..Default::default() };
        assert_eq!(begin(&good).map(|begin| begin.challenge_len), Ok(16));
        let with = |change: fn(&mut BeginHlsRequest)| {
            let mut request = good.clone();
            change(&mut request);
            begin(&request).map(|begin| begin.challenge_len)
        };
        let refused: [fn(&mut BeginHlsRequest); 11] = [
            |it| it.meter_id.clear(),
            |it| it.mechanism = 7,
            |it| it.mechanism = 0,
            |it| it.challenge_length = 7,
            |it| it.challenge_length = 65,
            |it| it.security_suite = Some(3),
            |it| it.client = 65_536,
            |it| (it.mechanism, it.challenge_length) = (2, 24),
            |it| it.encryption_key_version = 2,
            |it| it.authentication_key_version = 2,
            |it| (it.encryption_key_version, it.authentication_key_version) = (65_536, 1),
        ];
        for (at, change) in refused.into_iter().enumerate() {
            assert!(with(change).is_err(), "{at}");
        }
        assert_eq!(with(|it| it.challenge_length = 64), Ok(64));
        assert!(handle(&[0; 31]).is_err() && handle(&[0; 33]).is_err());
        let both = VerifyHlsAnswerRequest {
            answer: vec![1].into(),
            apdu: vec![1].into(),
            ..Default::default()
        };
        assert!(given(&both).is_err() && given(&VerifyHlsAnswerRequest::default()).is_err());
        assert!(action(HlsAction { form: 3, ..Default::default() }).is_err());
        assert!(action(HlsAction { form: 4, ..Default::default() }).is_err());
    }

    #[test]
    fn invariant_8_no_byte_of_an_answer_that_was_refused_leaves() {
        let of = |verdict, bytes: &[u8]| Answered {
            outcome: Outcome::of(verdict),
            bytes: bytes.to_vec(),
            answer_counter: 0,
            action_counter: 0,
            secret_version: 0,
        };
        assert_eq!(answered(of(Verdict::PolicyRefused, b"f"), false), Err(Misfit));
        assert_eq!(answered(of(Verdict::Ok, b""), true), Err(Misfit));
        let bare = answered(of(Verdict::Ok, b"f"), false).unwrap();
        assert_eq!((&bare.answer[..], &bare.apdu[..]), (&b"f"[..], &b""[..]));
        // Whoever wants the APDU gets no answer that he could put into another one.
        let carried = answered(of(Verdict::Ok, b"f"), true).unwrap();
        assert_eq!((&carried.answer[..], &carried.apdu[..]), (&b""[..], &b"f"[..]));
    }
}
