//! The end of a caller's patience, as gRPC writes it: up to eight digits and a unit.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The time that a call may take by its caller's word; `None`: he named none, or none that can be read.
pub(crate) fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&number.len()) && number.bytes().all(|it| it.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read_and_nothing_else() {
        let of = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", value.parse().unwrap());
            timeout_of(&metadata)
        };
        let seconds = Duration::from_secs;
        assert_eq!(of("2H"), Some(seconds(7_200)));
        assert_eq!((of("3M"), of("4S")), (Some(seconds(180)), Some(seconds(4))));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1_500)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        assert_eq!(of("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "5", "-1S", "+1S", "123456789S", "1x", "1 S"] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
        assert_eq!(timeout_of(&MetadataMap::new()), None);
        // As the library that we call with writes it.
        let mut request = tonic::Request::new(());
        request.set_timeout(Duration::from_millis(2_500));
        assert_eq!(timeout_of(request.metadata()), Some(Duration::from_millis(2_500)));
    }
}
