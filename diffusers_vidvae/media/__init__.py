from .errors import MediaError, MediaWarning
from .frames import Frame, FrameBatch, VideoInfo
from .reader import VideoReader
from .writer import VideoWriter


__all__ = ["Frame", "FrameBatch", "MediaError", "MediaWarning", "VideoInfo", "VideoReader", "VideoWriter"]
