"""Where the stores are (prefix `STORES_`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from modelworks.kit.settings import Settings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class StoresSettings(Settings):
    """One column or the other."""

    model_config = SettingsConfigDict(env_prefix="STORES_", frozen=True, extra="ignore", hide_input_in_errors=True)

    column: Literal["embedded", "real"] = Field(
        "embedded", description="`embedded`: one process, in `data`. `real`: Kafka, OpenSearch, S3 and Redis."
    )
    data: Path = Field(Path("modelworks-data"), description="Folder of the embedded column.")
    kafka_bootstrap: str = Field("", description="Kafka bootstrap servers, `host:port,host:port`.")
    kafka_partitions: int = Field(12, ge=1, le=1000, description="Partitions of topics that are made here.")
    kafka_replication: int = Field(1, ge=1, le=9, description="Replication factor of topics that are made here.")
    opensearch_url: str = Field("", description="OpenSearch base URL.")
    opensearch_user: str = Field("", description="OpenSearch user; empty for none.")
    opensearch_password: SecretStr = Field(SecretStr(""), description="OpenSearch password.")
    opensearch_prefix: str = Field("modelworks-", description="Prefix of all index names.")
    s3_endpoint: str = Field("", description="S3 base URL, as the services reach it.")
    s3_public_endpoint: str = Field("", description="S3 base URL in presigned requests. Empty: the same.")
    s3_access_key: str = Field("", description="S3 access key.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="S3 secret key.")
    s3_bucket: str = Field("modelworks", description="Bucket; made when missing.")
    s3_region: str = Field("us-east-1", description="S3 region.")
    redis_url: SecretStr = Field(SecretStr(""), description="Redis URL, password included.")
    timeout_ms: int = Field(10_000, ge=100, le=600_000, description="Most wait for one answer of a store.")
