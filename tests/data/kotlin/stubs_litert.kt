package com.google.ai.edge.litert

import java.io.Closeable

enum class Accelerator { CPU, GPU, NPU }

class Environment

class TensorBuffer : Closeable {
    fun writeInt(data: IntArray): Unit = TODO()
    fun writeFloat(data: FloatArray): Unit = TODO()
    fun readInt(): IntArray = TODO()
    fun readFloat(): FloatArray = TODO()
    override fun close(): Unit = TODO()
}

class CompiledModel private constructor() : Closeable {
    class Options(vararg accelerators: Accelerator)

    fun createInputBuffer(inputName: String, signature: String = ""): TensorBuffer = TODO()
    fun createOutputBuffer(outputName: String, signature: String = ""): TensorBuffer = TODO()
    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String = ""): Unit = TODO()
    override fun close(): Unit = TODO()

    companion object {
        @JvmStatic
        fun create(filePath: String, options: Options, optionalEnv: Environment? = null): CompiledModel = TODO()
    }
}
