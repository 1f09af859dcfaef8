import pytest
from click.testing import CliRunner

from cli.prices import command


@pytest.mark.parametrize(
    "media", ["image_url", "image_url=", "=5", "text=5", "refusal=1", "image_url=-1", "Image=1", "a=x"]
)
def test_media_that_cannot_be_read_are_refused_before_anything_is_stored(media: str) -> None:
    arguments = ["set", "m", "--context", "100", "--prompt", "1", "--completion", "1", "--media", media]
    result = CliRunner().invoke(command, arguments, env={"COCOON_DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    assert result.exit_code == 2
    assert "TYPE=TOKENS" in result.output
